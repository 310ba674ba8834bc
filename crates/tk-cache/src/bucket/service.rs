//! The services behind one face.

use super::{
    config::{BucketConfig, S3Params, Service},
    credentials::{self, BucketCredentials},
    environment::CloudEnvironment,
    refusal::{AskedService, Refusal},
    time,
    transport::BucketTransport,
};
use crate::sentence::{element, elements};
use bytes::Bytes;
use http::Method;
use object_store::{
    Attribute, Attributes, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AwsAuthorizer},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    client::{CredentialProvider, HttpRequest, HttpRequestBody, HttpService},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    list::PaginatedListStore,
    multipart::MultipartStore,
    path::Path,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::{error::Error as StdError, sync::Arc, time::SystemTime};
use tk_store::{Error, Result};
use url::Url;

/// A bucket, with who we are settled.
pub(super) struct Bucket {
    pub(super) asked: AskedService,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) multipart: Arc<dyn MultipartStore>,
    pub(super) lister: Arc<dyn PaginatedListStore>,
    /// What can only be asked of S3.
    pub(super) s3: Option<S3>,
    /// Whether an upload in parts has a name of its own, so that somebody must give it up.
    pub(super) uploads_last: bool,
}

impl Bucket {
    pub(super) async fn open(config: &BucketConfig, transport: &BucketTransport) -> Result<Self> {
        match &config.service {
            Service::S3(params) => s3(config, params, transport).await,
            Service::Google { endpoint } => google(config, endpoint.as_ref(), transport),
            Service::Azure { account, endpoint } => {
                azure(config, account, endpoint.as_ref(), transport)
            }
        }
    }

    fn new<S>(asked: AskedService, store: S) -> Self
    where
        S: ObjectStore + MultipartStore + PaginatedListStore,
    {
        let store = Arc::new(store);
        Bucket {
            asked,
            store: store.clone(),
            multipart: store.clone(),
            lister: store,
            s3: None,
            uploads_last: true,
        }
    }
}

async fn s3(
    config: &BucketConfig,
    params: &S3Params,
    transport: &BucketTransport,
) -> Result<Bucket> {
    let environment = &config.environment;
    let profile = params.profile.as_deref();
    let region = match &params.region {
        Some(region) => region.clone(),
        None => credentials::region(environment, profile)?.unwrap_or_else(|| REGION.to_owned()),
    };
    let url = params.bucket_url(&config.bucket, &region)?;
    let found = BucketCredentials::find(environment, profile, &region, transport.clone()).await?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&config.bucket)
        .with_region(&region)
        // The URL holds the bucket in either style; the library is to add it nowhere.
        .with_virtual_hosted_style_request(true)
        .with_endpoint(&url)
        // What TLS protects need not be hashed once more.
        .with_unsigned_payload(url.starts_with("https:"))
        .with_client_options(ClientOptions::new())
        .with_retry(no_retry())
        .with_http_connector(transport.clone());
    builder = match &found {
        Some(credentials) => builder.with_credentials(credentials.clone()),
        None => builder.with_skip_signature(true),
    };
    let asked = AskedService {
        uri: config.to_string(),
        bucket: config.bucket.clone(),
        server: server(&url),
        region: region.clone(),
        anonymous: found.is_none(),
    };
    let mut bucket = Bucket::new(asked, builder.build().map_err(preparing)?);
    bucket.s3 = Some(S3 {
        url,
        region,
        credentials: found,
        transport: transport.clone(),
    });
    Ok(bucket)
}

fn google(
    config: &BucketConfig,
    endpoint: Option<&Url>,
    transport: &BucketTransport,
) -> Result<Bucket> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(&config.bucket)
        .with_retry(no_retry())
        .with_http_connector(transport.clone());
    if let Some(file) = config.environment.get("SERVICE_ACCOUNT") {
        builder = builder.with_service_account_path(file);
    }
    for (key, value) in keys::<GoogleConfigKey>(&config.environment, "GOOGLE_") {
        builder = builder.with_config(key, value);
    }
    let url = match endpoint {
        Some(url) => url.as_str().trim_end_matches('/'),
        None => "https://storage.googleapis.com",
    };
    builder = builder.with_base_url(url);
    let asked = asked(config, server(url));
    Ok(Bucket::new(asked, builder.build().map_err(preparing)?))
}

fn azure(
    config: &BucketConfig,
    account: &str,
    endpoint: Option<&Url>,
    transport: &BucketTransport,
) -> Result<Bucket> {
    let mut builder = MicrosoftAzureBuilder::new()
        .with_retry(no_retry())
        .with_http_connector(transport.clone());
    for (key, value) in keys::<AzureConfigKey>(&config.environment, "AZURE_") {
        builder = builder.with_config(key, value);
    }
    builder = builder
        .with_account(account)
        .with_container_name(&config.bucket);
    let url = match endpoint {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None => format!("https://{account}.blob.core.windows.net"),
    };
    builder = builder.with_endpoint(url.clone());
    let asked = asked(config, server(&url));
    let mut bucket = Bucket::new(asked, builder.build().map_err(preparing)?);
    // Blocks that are not made into anything go by themselves, after a week.
    bucket.uploads_last = false;
    Ok(bucket)
}

/// The settings of the environment that the library knows, without the prefix's case.
fn keys<'a, K: std::str::FromStr>(
    environment: &'a CloudEnvironment,
    prefix: &'a str,
) -> impl Iterator<Item = (K, &'a str)> {
    let of_service = environment
        .variables
        .iter()
        .filter(move |(name, _)| name.starts_with(prefix));
    of_service.filter_map(|(name, value)| {
        let key = name.to_ascii_lowercase().parse().ok()?;
        Some((key, value.as_str())).filter(|(_, value)| !value.is_empty())
    })
}

fn asked(config: &BucketConfig, server: String) -> AskedService {
    AskedService {
        uri: config.to_string(),
        bucket: config.bucket.clone(),
        server,
        region: String::new(),
        anonymous: false,
    }
}

/// Scheme and host of a URL.
fn server(url: &str) -> String {
    let origin = Url::parse(url).map(|url| url.origin().ascii_serialization());
    origin.unwrap_or_else(|_| url.to_owned())
}

fn preparing(error: object_store::Error) -> Error {
    let mut words = error.to_string();
    // The library begins its sentences with its own name for the service.
    if let Some((_, rest)) = words.split_once(": ") {
        words = rest.to_owned();
    }
    Error::invalid(words)
}

/// Our transport tries again, and knows better when.
fn no_retry() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// What is stored with an object.
pub(super) fn attributes(mime: &str, storage_class: Option<&str>) -> Attributes {
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentType, mime.to_owned().into());
    if let Some(class) = storage_class {
        attributes.insert(Attribute::StorageClass, class.to_owned().into());
    }
    attributes
}

/// Requests to S3 that the library does not know.
pub(super) struct S3 {
    url: String,
    region: String,
    credentials: Option<Arc<BucketCredentials>>,
    transport: BucketTransport,
}

/// An upload in parts that S3 knows of.
pub(super) struct ListedUpload {
    pub(super) id: String,
    pub(super) began: Option<SystemTime>,
}

type ServiceError = Box<dyn StdError + Send + Sync>;

impl S3 {
    /// Whether there is still such an upload.
    pub(super) async fn is_open(&self, key: &Path, id: &str) -> Result<bool, ServiceError> {
        let id = utf8_percent_encode(id, STRICT);
        let path = utf8_percent_encode(key.as_ref(), STRICT_PATH);
        match self.get(&format!("{path}?max-parts=1&uploadId={id}")).await {
            Ok(_) => Ok(true),
            Err(error) => match Refusal::of(&*error) {
                // Ceph has the second word for it when asked for the parts, and only then.
                Some(refusal) if refusal.is("NoSuchUpload") || refusal.is("NoSuchKey") => Ok(false),
                // It may not be allowed to look. That the parts are there was noted.
                Some(refusal) if refusal.is_denied() || refusal.status.as_u16() == 501 => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// The open uploads of an object, as far as the service says.
    pub(super) async fn uploads(&self, key: &Path) -> Result<Vec<ListedUpload>, ServiceError> {
        let prefix = utf8_percent_encode(key.as_ref(), STRICT);
        let answer = match self.get(&format!("?prefix={prefix}&uploads=")).await {
            Ok(answer) => answer,
            Err(error) => match Refusal::of(&*error) {
                Some(refusal) if refusal.status.as_u16() == 501 || refusal.is_denied() => {
                    return Ok(Vec::new());
                }
                _ => return Err(error),
            },
        };
        let text = String::from_utf8_lossy(&answer);
        let listed = elements(&text, &["Upload"]).filter_map(|(_, upload)| {
            let id = element(upload, "UploadId")?;
            let began = element(upload, "Initiated").and_then(|at| time(&at));
            (element(upload, "Key")? == key.as_ref()).then_some(ListedUpload { id, began })
        });
        Ok(listed.collect())
    }

    async fn get(&self, path_and_query: &str) -> Result<Bytes, ServiceError> {
        let between = if path_and_query.starts_with('?') {
            ""
        } else {
            "/"
        };
        let mut request: HttpRequest = http::Request::builder()
            .method(Method::GET)
            .uri(format!("{}{between}{path_and_query}", self.url))
            .body(HttpRequestBody::empty())?;
        if let Some(credentials) = &self.credentials {
            let credential = credentials.get_credential().await?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .try_authorize(&mut request, None)?;
        }
        let answer = self.transport.call(request).await?;
        Ok(answer.into_body().bytes().await?)
    }
}

/// As the signature wants it.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const STRICT_PATH: &AsciiSet = &STRICT.remove(b'/');

/// The region to use where nothing names one: the default of Nix and of Amazon.
const REGION: &str = "us-east-1";
