//! Places that credentials come from.

use super::{process, time, transport::BucketTransport};
use crate::http::{Client, ClientConfig, Proxies};
use crate::sentence::element;
use bytes::Bytes;
use http::{Method, header::CONTENT_TYPE};
use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    client::{HttpRequest, HttpRequestBody, HttpService},
};
use serde_json::Value;
use std::{
    error::Error as StdError,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use url::form_urlencoded::Serializer;

/// One of the places that can give credentials for S3.
pub(super) enum CredentialSource {
    Keys(Keys),
    /// A program that prints them.
    Process {
        command: String,
    },
    /// A role that `source` may take.
    Role {
        source: Box<CredentialSource>,
        role: String,
        session: String,
        external_id: Option<String>,
        sts: Option<String>,
    },
    /// A role that the bearer of a token may take.
    WebIdentity {
        file: PathBuf,
        role: String,
        session: String,
        sts: Option<String>,
    },
    /// What a container's host gives it.
    Container {
        url: String,
        token: Option<String>,
        token_file: Option<PathBuf>,
    },
    /// The service of a machine of Amazon's that tells it who it is.
    Machine {
        endpoint: Option<String>,
    },
}

/// Keys that are at hand.
pub(super) struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

/// Credentials, and when they end.
pub(super) struct FetchedCredentials {
    pub(super) credential: AwsCredential,
    pub(super) ends: Option<SystemTime>,
}

pub(super) type SourceError = Box<dyn StdError + Send + Sync>;

impl CredentialSource {
    pub(super) fn keys(id: &str, secret: &str, token: Option<String>) -> Self {
        let (id, secret) = (id.to_owned(), secret.to_owned());
        CredentialSource::Keys(Keys { id, secret, token })
    }

    pub(super) async fn fetch(
        &self,
        transport: &BucketTransport,
        region: &str,
    ) -> Result<FetchedCredentials, SourceError> {
        match self {
            CredentialSource::Keys(Keys { id, secret, token }) => Ok(FetchedCredentials {
                credential: AwsCredential {
                    key_id: id.clone(),
                    secret_key: secret.clone(),
                    token: token.clone(),
                },
                ends: None,
            }),
            CredentialSource::Process { command } => {
                let command = command.clone();
                tokio::task::spawn_blocking(move || process::run(&command)).await?
            }
            CredentialSource::Role {
                source,
                role,
                session,
                external_id,
                sts,
            } => {
                // A role behind a role behind a role: without the box this has no size.
                let first = Box::pin(source.fetch(transport, region)).await?;
                let id = external_id.as_deref().map(|id| ("ExternalId", id));
                let form = form("AssumeRole", role, session, id);
                let mut request = sts_request(sts.as_deref(), region, form)?;
                AwsAuthorizer::new(&first.credential, "sts", region)
                    .try_authorize(&mut request, None)?;
                of_sts(&send(transport, request).await?)
            }
            CredentialSource::WebIdentity {
                file,
                role,
                session,
                sts,
            } => {
                let token = read(file)?;
                let token = ("WebIdentityToken", token.trim());
                let form = form("AssumeRoleWithWebIdentity", role, session, Some(token));
                let request = sts_request(sts.as_deref(), region, form)?;
                of_sts(&send(transport, request).await?)
            }
            CredentialSource::Container {
                url,
                token,
                token_file,
            } => {
                let token = match token_file {
                    Some(file) => Some(read(file)?.trim().to_owned()),
                    None => token.clone(),
                };
                of_json(&ask_nearby(&nearby()?, url, token.as_deref()).await?)
            }
            CredentialSource::Machine { endpoint } => {
                let endpoint = endpoint.as_deref().unwrap_or(MACHINE);
                of_machine(&nearby()?, endpoint.trim_end_matches('/')).await
            }
        }
    }
}

fn form(action: &str, role: &str, session: &str, more: Option<(&str, &str)>) -> String {
    Serializer::new(String::new())
        .append_pair("Action", action)
        .append_pair("Version", "2011-06-15")
        .append_pair("RoleArn", role)
        .append_pair("RoleSessionName", session)
        .extend_pairs(more)
        .finish()
}

fn sts_request(sts: Option<&str>, region: &str, form: String) -> Result<HttpRequest, SourceError> {
    let url = match sts {
        Some(url) => url.to_owned(),
        None => format!("https://sts.{region}.amazonaws.com/"),
    };
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(HttpRequestBody::from(form))?;
    Ok(request)
}

async fn send(transport: &BucketTransport, request: HttpRequest) -> Result<Bytes, SourceError> {
    let answer = transport.call(request).await?;
    Ok(answer.into_body().bytes().await?)
}

fn of_sts(answer: &[u8]) -> Result<FetchedCredentials, SourceError> {
    let text = String::from_utf8_lossy(answer);
    let get = |name: &str| element(&text, name).ok_or(format!("STS answered without {name}"));
    Ok(FetchedCredentials {
        credential: AwsCredential {
            key_id: get("AccessKeyId")?,
            secret_key: get("SecretAccessKey")?,
            token: Some(get("SessionToken")?),
        },
        ends: time::parse(&get("Expiration")?),
    })
}

/// What a `credential_process` prints, and what the services near a machine answer.
pub(super) fn of_json(text: &[u8]) -> Result<FetchedCredentials, SourceError> {
    // What it says must not end up in an error: it is secret.
    let answer: Value =
        serde_json::from_slice(text).map_err(|_| "no JSON where credentials were expected")?;
    let get = |name: &str| Some(answer.get(name)?.as_str()?.to_owned());
    let need = |name: &str| get(name).ok_or(format!("credentials without {name}"));
    Ok(FetchedCredentials {
        credential: AwsCredential {
            key_id: need("AccessKeyId")?,
            secret_key: need("SecretAccessKey")?,
            token: get("SessionToken").or_else(|| get("Token")),
        },
        ends: get("Expiration").and_then(|ends| time::parse(&ends)),
    })
}

fn read(file: &Path) -> Result<String, SourceError> {
    std::fs::read_to_string(file).map_err(|e| format!("reading {}: {e}", file.display()).into())
}

/// A client for services on the next wire: no proxy, no patience.
fn nearby() -> Result<Client, SourceError> {
    let config = ClientConfig {
        proxies: Proxies::default(),
        connect_timeout: NEARBY,
        ..ClientConfig::default()
    };
    Ok(Client::new(&config)?)
}

async fn ask_nearby(
    client: &Client,
    url: &str,
    authorization: Option<&str>,
) -> Result<Bytes, SourceError> {
    let mut request = client.raw().get(url).timeout(NEARBY * 5);
    if let Some(token) = authorization {
        request = request.header("authorization", token);
    }
    answer(request).await
}

async fn of_machine(client: &Client, endpoint: &str) -> Result<FetchedCredentials, SourceError> {
    let token = client
        .raw()
        .put(format!("{endpoint}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "600")
        .timeout(NEARBY);
    let token = answer(token).await?;
    let token = std::str::from_utf8(&token)?.trim();
    let get = async |path: &str| {
        let url = format!("{endpoint}/latest/meta-data/iam/security-credentials/{path}");
        let request = client.raw().get(url).timeout(NEARBY * 5);
        answer(request.header("x-aws-ec2-metadata-token", token)).await
    };
    let role = get("").await?;
    let role = std::str::from_utf8(&role)?
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    of_json(&get(role.trim()).await?)
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Bytes, SourceError> {
    let mut response = request.send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err("credentials that are too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.into())
}

const MACHINE: &str = "http://169.254.169.254";

/// How long a service on the next wire may take to be there.
const NEARBY: Duration = Duration::from_secs(1);

pub(super) const MAX_ANSWER: usize = 64 << 10;
