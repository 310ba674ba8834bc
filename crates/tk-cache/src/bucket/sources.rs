//! Places that credentials come from.

use super::{process, time, transport::BucketTransport};
use crate::http::{Client, ClientConfig, Proxies};
use crate::sentence::element;
use http::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    client::{HttpRequest, HttpRequestBody, HttpService},
};
use serde_json::Value;
use std::{
    error::Error as StdError,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use url::form_urlencoded::Serializer;

/// One of the places that can give credentials for S3.
pub(super) enum CredentialSource {
    /// Keys that are at hand.
    Keys(Arc<AwsCredential>),
    /// A program that prints them.
    Process { command: String },
    /// A role that `source` may take.
    Role {
        source: Box<CredentialSource>,
        role: StsRole,
        external_id: Option<String>,
    },
    /// A role that the bearer of a token may take.
    WebIdentity { file: PathBuf, role: StsRole },
    /// What a container's host gives it.
    Container {
        url: String,
        token: Option<String>,
        token_file: Option<PathBuf>,
    },
    /// The service of a machine of Amazon's that tells it who it is.
    Machine { endpoint: Option<String> },
}

/// A role that Amazon's token service gives credentials for.
pub(super) struct StsRole {
    pub(super) arn: String,
    /// The name that the role is taken under.
    pub(super) session: String,
    /// Another URL of the service than that of the region.
    pub(super) sts: Option<String>,
}

/// Credentials, and when they end.
#[derive(Clone)]
pub(super) struct FetchedCredentials {
    pub(super) credential: Arc<AwsCredential>,
    pub(super) ends: Option<SystemTime>,
}

pub(super) type SourceError = Box<dyn StdError + Send + Sync>;

impl CredentialSource {
    pub(super) fn keys(id: &str, secret: &str, token: Option<&str>) -> Self {
        CredentialSource::Keys(Arc::new(AwsCredential {
            key_id: id.to_owned(),
            secret_key: secret.to_owned(),
            token: token.map(str::to_owned),
        }))
    }

    pub(super) async fn fetch(
        &self,
        transport: &BucketTransport,
        region: &str,
    ) -> Result<FetchedCredentials, SourceError> {
        match self {
            CredentialSource::Keys(keys) => Ok(FetchedCredentials {
                credential: keys.clone(),
                ends: None,
            }),
            CredentialSource::Process { command } => {
                let command = command.clone();
                tokio::task::spawn_blocking(move || of_process(&command)).await?
            }
            CredentialSource::Role {
                source,
                role,
                external_id,
            } => {
                // A role behind a role behind a role: without the box this has no size.
                let first = Box::pin(source.fetch(transport, region)).await?;
                let id = external_id.as_deref().map(|id| ("ExternalId", id));
                let mut request = role.request("AssumeRole", region, id)?;
                AwsAuthorizer::new(&first.credential, "sts", region)
                    .try_authorize(&mut request, None)?;
                of_sts(transport, request).await
            }
            CredentialSource::WebIdentity { file, role } => {
                let token = read(file)?;
                let token = ("WebIdentityToken", token.trim());
                let request = role.request("AssumeRoleWithWebIdentity", region, Some(token))?;
                of_sts(transport, request).await
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
                let mut request = nearby()?.raw().get(url);
                if let Some(token) = token {
                    request = request.header(AUTHORIZATION, token);
                }
                of_json(&answer(request, NEARBY * 5).await?)
            }
            CredentialSource::Machine { endpoint } => {
                let endpoint = endpoint.as_deref().unwrap_or(MACHINE);
                of_machine(&nearby()?, endpoint.trim_end_matches('/')).await
            }
        }
    }
}

impl StsRole {
    fn request(
        &self,
        action: &str,
        region: &str,
        more: Option<(&str, &str)>,
    ) -> Result<HttpRequest, SourceError> {
        let form = Serializer::new(String::new())
            .append_pair("Action", action)
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &self.arn)
            .append_pair("RoleSessionName", &self.session)
            .extend_pairs(more)
            .finish();
        let of_region = || format!("https://sts.{region}.amazonaws.com/");
        let request = http::Request::builder()
            .method(Method::POST)
            .uri(self.sts.clone().unwrap_or_else(of_region))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(HttpRequestBody::from(form))?;
        Ok(request)
    }
}

async fn of_sts(
    transport: &BucketTransport,
    request: HttpRequest,
) -> Result<FetchedCredentials, SourceError> {
    let answer = transport.call(request).await?.into_body().bytes().await?;
    let text = String::from_utf8_lossy(&answer);
    let get = |name: &str| element(&text, name).ok_or(format!("STS answered without {name}"));
    Ok(FetchedCredentials {
        credential: Arc::new(AwsCredential {
            key_id: get("AccessKeyId")?,
            secret_key: get("SecretAccessKey")?,
            token: Some(get("SessionToken")?),
        }),
        ends: time(&get("Expiration")?),
    })
}

fn of_process(command: &str) -> Result<FetchedCredentials, SourceError> {
    let printed = process::run(command)?;
    of_json(&String::from_utf8_lossy(&printed))
        .map_err(|e| format!("the credential_process {command} printed {e}").into())
}

/// What a `credential_process` prints, and what the services near a machine answer.
fn of_json(text: &str) -> Result<FetchedCredentials, SourceError> {
    // What it says must not end up in an error: it is secret.
    let answer: Value =
        serde_json::from_str(text).map_err(|_| "no JSON where credentials were expected")?;
    let get = |name: &str| Some(answer.get(name)?.as_str()?.to_owned());
    let need = |name: &str| get(name).ok_or(format!("credentials without {name}"));
    Ok(FetchedCredentials {
        credential: Arc::new(AwsCredential {
            key_id: need("AccessKeyId")?,
            secret_key: need("SecretAccessKey")?,
            token: get("SessionToken").or_else(|| get("Token")),
        }),
        ends: get("Expiration").and_then(|ends| time(&ends)),
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

async fn of_machine(client: &Client, endpoint: &str) -> Result<FetchedCredentials, SourceError> {
    let token = client
        .raw()
        .put(format!("{endpoint}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "600");
    let token = answer(token, NEARBY).await?;
    let get = async |path: &str| {
        let url = format!("{endpoint}/latest/meta-data/iam/security-credentials/{path}");
        let request = client.raw().get(url);
        let request = request.header("x-aws-ec2-metadata-token", token.trim());
        answer(request, NEARBY * 5).await
    };
    let roles = get("").await?;
    let role = roles.lines().next().unwrap_or_default();
    of_json(&get(role.trim()).await?)
}

async fn answer(request: reqwest::RequestBuilder, limit: Duration) -> Result<String, SourceError> {
    let mut response = request.timeout(limit).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err("credentials that are too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(body)?)
}

const MACHINE: &str = "http://169.254.169.254";

/// How long a service on the next wire may take to be there.
const NEARBY: Duration = Duration::from_secs(1);

const MAX_ANSWER: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_it_and_not_what_it_said() {
        for (command, words) in [
            ("exit 3", "the credential_process exit 3 ended with"),
            ("echo secret", "printed no JSON"),
        ] {
            let error = of_process(command).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
