//! Who this is to Amazon: the order in which its tools look for credentials.

use super::{
    environment::CloudEnvironment,
    profile::{DEFAULT, Profile, Profiles, profile_name},
    sources::{CredentialSource, FetchedCredentials, StsRole},
    transport::BucketTransport,
};
use async_trait::async_trait;
use object_store::{aws::AwsCredential, client::CredentialProvider};
use std::{
    error::Error as StdError,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tk_store::{Error, Result};
use tokio::sync::Mutex;

/// Credentials, renewed before they end.
pub(super) struct BucketCredentials {
    source: CredentialSource,
    transport: BucketTransport,
    region: String,
    held: Mutex<Option<FetchedCredentials>>,
}

impl BucketCredentials {
    /// The first of: a profile that was asked for by name, the variables for keys, the profile of
    /// the environment or `default`, a web identity, the container's, the machine's. `None`: there
    /// are none.
    pub(super) async fn find(
        environment: &CloudEnvironment,
        profile: Option<&str>,
        region: &str,
        transport: BucketTransport,
    ) -> Result<Option<Arc<Self>>> {
        let make = |source| {
            let held = Mutex::new(None);
            let region = region.to_owned();
            let transport = transport.clone();
            Arc::new(BucketCredentials {
                source,
                transport,
                region,
                held,
            })
        };
        let found = configured(environment, profile)?;
        if let Some(source) = found {
            return Ok(Some(make(source)));
        }
        let disabled = environment.get("AWS_EC2_METADATA_DISABLED");
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let machine = make(CredentialSource::Machine {
            endpoint: environment
                .get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
                .map(str::to_owned),
        });
        // That there is nobody to ask is the usual case.
        Ok(machine.current().await.is_ok().then_some(machine))
    }

    async fn current(&self) -> Result<Arc<AwsCredential>, Box<dyn StdError + Send + Sync>> {
        let mut held = self.held.lock().await;
        let now = SystemTime::now();
        let lasts = |held: &FetchedCredentials, margin: Duration| {
            held.ends.is_none_or(|ends| ends > now + margin)
        };
        if let Some(held) = held.as_ref().filter(|held| lasts(held, RENEWED)) {
            return Ok(held.credential.clone());
        }
        match self.source.fetch(&self.transport, &self.region).await {
            Ok(fetched) => {
                let credential = fetched.credential.clone();
                *held = Some(fetched);
                Ok(credential)
            }
            // They are good for a while, and the next request tries again.
            Err(error) => match held.as_ref().filter(|held| lasts(held, Duration::ZERO)) {
                Some(held) => Ok(held.credential.clone()),
                None => Err(error),
            },
        }
    }
}

#[async_trait]
impl CredentialProvider for BucketCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let current = self.current().await;
        current.map_err(|source| object_store::Error::Generic {
            store: "S3",
            source,
        })
    }
}

/// Shows the name of the type only, since all else may be secret.
impl fmt::Debug for BucketCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The region that the environment or the profile names.
pub(super) fn region(
    environment: &CloudEnvironment,
    profile: Option<&str>,
) -> Result<Option<String>> {
    let variables = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let mut set = variables.iter().filter_map(|name| environment.get(name));
    if let (Some(region), None) = (set.next(), profile) {
        return Ok(Some(region.to_owned()));
    }
    let name = profile_name(environment, profile);
    let profiles = Profiles::read(environment)?;
    let of_profile = profiles
        .find(name)
        .and_then(|profile| profile.get("region"));
    let in_general = variables.iter().find_map(|name| environment.get(name));
    Ok(of_profile.or(in_general).map(str::to_owned))
}

fn configured(
    environment: &CloudEnvironment,
    profile: Option<&str>,
) -> Result<Option<CredentialSource>> {
    let named = profile.filter(|name| *name != DEFAULT);
    if named.is_none()
        && let Some(keys) = keys_of_variables(environment)?
    {
        return Ok(Some(keys));
    }
    let name = profile_name(environment, profile);
    let profiles = Profiles::read(environment)?;
    match profiles.find(name) {
        Some(_) => {
            let found = of_profile(environment, &profiles, name, 0)?;
            if found.is_some() || named.is_some() {
                let none =
                    || Error::invalid(format!("the AWS profile {name} holds no credentials"));
                return found.map(Some).ok_or_else(none);
            }
        }
        None if name != DEFAULT => {
            return Err(Error::invalid(format!("there is no AWS profile {name}")));
        }
        None => {}
    }
    Ok(web_identity(environment).or_else(|| container(environment)))
}

fn keys_of_variables(environment: &CloudEnvironment) -> Result<Option<CredentialSource>> {
    let token = environment.get("AWS_SESSION_TOKEN");
    let token = token.or_else(|| environment.get("AWS_SECURITY_TOKEN"));
    match (
        environment.get("AWS_ACCESS_KEY_ID"),
        environment.get("AWS_SECRET_ACCESS_KEY"),
    ) {
        (Some(id), Some(secret)) => Ok(Some(CredentialSource::keys(id, secret, token))),
        (None, _) => Ok(None),
        (Some(_), None) => Err(Error::invalid(
            "AWS_ACCESS_KEY_ID is set, but not AWS_SECRET_ACCESS_KEY",
        )),
    }
}

/// `None` if the profile says nothing of credentials.
fn of_profile(
    environment: &CloudEnvironment,
    profiles: &Profiles,
    name: &str,
    depth: usize,
) -> Result<Option<CredentialSource>> {
    let wrong = |words: String| Error::invalid(format!("the AWS profile {name} {words}"));
    let profile = profiles
        .find(name)
        .ok_or_else(|| Error::invalid(format!("there is no AWS profile {name}")))?;
    if depth > MAX_DEPTH {
        return Err(wrong("refers to itself".to_owned()));
    }
    // A profile may take its own keys to get into its role.
    let own_keys = depth > 0 && profile.get("source_profile") == Some(name);
    if let Some(role) = profile.get("role_arn").filter(|_| !own_keys) {
        return role_of_profile(environment, profiles, profile, role, depth)
            .and_then(|source| source.map(Some).ok_or_else(|| {
                wrong("has a role_arn, but neither a source_profile, a credential_source nor a web_identity_token_file".to_owned())
            }));
    }
    if let Some(id) = profile.get("aws_access_key_id") {
        let secret = profile.get("aws_secret_access_key").ok_or_else(|| {
            wrong("has an aws_access_key_id, but no aws_secret_access_key".to_owned())
        })?;
        let token = profile.get("aws_session_token");
        let token = token.or_else(|| profile.get("aws_security_token"));
        return Ok(Some(CredentialSource::keys(id, secret, token)));
    }
    if let Some(command) = profile.get("credential_process") {
        let command = command.to_owned();
        return Ok(Some(CredentialSource::Process { command }));
    }
    if profile.get("sso_session").is_some() || profile.get("sso_start_url").is_some() {
        return Err(wrong(format!(
            "signs in with SSO, which is not supported here: let it have \
             credential_process = aws configure export-credentials --profile {name}, \
             in another profile"
        )));
    }
    Ok(None)
}

/// `None` if it is not said who may take the role.
fn role_of_profile(
    environment: &CloudEnvironment,
    profiles: &Profiles,
    profile: &Profile,
    role: &str,
    depth: usize,
) -> Result<Option<CredentialSource>> {
    let session = profile.get("role_session_name");
    let role = sts_role(environment, role, session);
    if let Some(file) = profile.get("web_identity_token_file") {
        let file = PathBuf::from(file);
        return Ok(Some(CredentialSource::WebIdentity { file, role }));
    }
    if profile.get("mfa_serial").is_some() {
        return Err(Error::invalid(format!(
            "the role {} asks for a code of a second device, which is not supported here",
            role.arn
        )));
    }
    let source = match (
        profile.get("source_profile"),
        profile.get("credential_source"),
    ) {
        (Some(source), _) => of_profile(environment, profiles, source, depth + 1)?,
        (None, Some("Environment")) => keys_of_variables(environment)?,
        (None, Some("EcsContainer")) => container(environment),
        (None, Some("Ec2InstanceMetadata")) => Some(CredentialSource::Machine { endpoint: None }),
        _ => None,
    };
    let external_id = profile.get("external_id").map(str::to_owned);
    Ok(source.map(|source| CredentialSource::Role {
        source: Box::new(source),
        role,
        external_id,
    }))
}

fn sts_role(environment: &CloudEnvironment, arn: &str, session: Option<&str>) -> StsRole {
    StsRole {
        arn: arn.to_owned(),
        session: session.unwrap_or(SESSION).to_owned(),
        sts: environment.get("AWS_ENDPOINT_URL_STS").map(str::to_owned),
    }
}

fn web_identity(environment: &CloudEnvironment) -> Option<CredentialSource> {
    let file = environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")?.into();
    let session = environment.get("AWS_ROLE_SESSION_NAME");
    let role = sts_role(environment, environment.get("AWS_ROLE_ARN")?, session);
    Some(CredentialSource::WebIdentity { file, role })
}

/// Credentials of an ECS task or an EKS pod.
fn container(environment: &CloudEnvironment) -> Option<CredentialSource> {
    let relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    let relative = relative.map(|path| format!("http://169.254.170.2{path}"));
    let full = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let file = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    Some(CredentialSource::Container {
        url: relative.or_else(|| full.map(str::to_owned))?,
        token: environment
            .get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
            .map(str::to_owned),
        token_file: file.map(PathBuf::from),
    })
}

/// The name that roles are taken under, unless another is given.
const SESSION: &str = "tk-store";

/// Profiles that may stand behind one another.
const MAX_DEPTH: usize = 8;

/// Credentials are renewed this long before they end.
const RENEWED: Duration = Duration::from_secs(300);
