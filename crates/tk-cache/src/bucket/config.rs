//! Which bucket, where.

use super::{
    environment::CloudEnvironment,
    profile::{Profiles, profile_name},
};
use crate::http::ClientConfig;
use std::{fmt, net::IpAddr};
use tk_store::{Error, Result};
use url::Url;

/// Which bucket, and how to reach it.
#[derive(Debug, Clone)]
pub struct BucketConfig {
    /// The kind of service, and what only it needs.
    pub service: Service,
    /// The name of the bucket; for Azure that of the container.
    pub bucket: String,
    /// What the names of all objects start with, without slashes around it; empty: nothing.
    pub prefix: String,
    /// Bytes in each part of a large object but the last, at least [`MIN_CHUNK`]. Objects that
    /// would need more than 10,000 parts get larger ones.
    pub chunk_size: u64,
    /// The storage class of new objects; `None`: the bucket's own.
    pub storage_class: Option<String>,
    /// Where credentials are looked for.
    pub environment: CloudEnvironment,
    /// How to reach servers. Its credentials are not used.
    pub client: ClientConfig,
}

/// A kind of object storage.
#[derive(Debug, Clone)]
pub enum Service {
    /// Amazon S3 and what speaks its protocol.
    S3(S3Params),
    /// Google Cloud Storage. Credentials as the variables `GOOGLE_*` say; otherwise those of the
    /// machine.
    Google {
        /// Another server than Google's.
        endpoint: Option<Url>,
    },
    /// Azure Blob Storage. Credentials as the variables `AZURE_*` say.
    Azure {
        /// The name of the storage account, which Azure's own host names begin with.
        account: String,
        /// Another server than Azure's.
        endpoint: Option<Url>,
    },
}

/// What only S3 needs.
#[derive(Debug, Clone, Default)]
pub struct S3Params {
    /// A profile of the AWS files, which then comes before all other credentials.
    pub profile: Option<String>,
    /// The region; `None`: that of the environment, of the profile, or `us-east-1`.
    pub region: Option<String>,
    /// Another server than Amazon's; its path is kept. Where the URI names none it is that of
    /// `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, or of the profile.
    pub endpoint: Option<Url>,
    /// Where in the URL the bucket stands.
    pub addressing: Addressing,
    /// Whether Amazon's own servers are asked without encryption.
    pub plain_http: bool,
}

/// Where in the URL the bucket stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the host at Amazon, in the path elsewhere and for names with dots, for which
    /// certificates do not hold.
    #[default]
    Auto,
    /// The bucket stands at the end of the endpoint's path: `https://host/bucket/name`.
    Path,
    /// The bucket stands in the host, `https://bucket.host/name`, so its name must not have a
    /// dot.
    Virtual,
}

impl BucketConfig {
    /// The bucket of a URI: `scheme` is `s3`, `gs` or `az`, `location` all between `://` and `?`:
    /// `bucket[/prefix]`, for `az` `account/container[/prefix]` or, with the parameter `account`,
    /// `container[/prefix]`. `parameter` looks up those that [`PARAMETERS`] names.
    ///
    /// # Errors
    /// When parts are missing, or parameters have no meaning or exclude each other. What Nix knows
    /// as `multipart-upload` and `multipart-threshold` is checked but changes nothing: whatever is
    /// larger than one chunk goes in parts, since its size is not known before it is there.
    pub fn from_parts(
        scheme: &str,
        location: &str,
        parameter: &dyn Fn(&str) -> Option<String>,
        environment: CloudEnvironment,
        client: ClientConfig,
    ) -> Result<Self> {
        let parameter = |name: &str| parameter(name).filter(|value| !value.is_empty());
        let mut rest = location.trim_matches('/');
        let service = match scheme {
            "s3" => {
                let mut params = S3Params::parse(&parameter)?;
                if params.endpoint.is_none() {
                    let profile = params.profile.as_deref();
                    params.endpoint = s3_endpoint(&environment, profile)?;
                }
                Service::S3(params)
            }
            "gs" => Service::Google {
                endpoint: endpoint(&parameter)?,
            },
            "az" => {
                let account = match parameter("account") {
                    Some(account) => account,
                    None => {
                        let (account, container) = rest.split_once('/').ok_or_else(|| {
                            Error::invalid(format!(
                                "az://{location} names no account: it is az://ACCOUNT/CONTAINER"
                            ))
                        })?;
                        rest = container.trim_start_matches('/');
                        account.to_owned()
                    }
                };
                let endpoint = endpoint(&parameter)?;
                Service::Azure { account, endpoint }
            }
            _ => return Err(Error::invalid(format!("{scheme}:// is not object storage"))),
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let valid = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if bucket.is_empty() || !bucket.chars().all(valid) || bucket.starts_with('.') {
            return Err(Error::invalid(format!(
                "{scheme}://{location} names no bucket"
            )));
        }
        if let Some(flag) = parameter("multipart-upload")
            && !matches!(flag.as_str(), "true" | "false" | "1" | "0" | "yes" | "no")
        {
            return Err(wrong("multipart-upload", &flag, "true or false"));
        }
        bytes("multipart-threshold", &parameter)?;
        let chunk_size = bytes("multipart-chunk-size", &parameter)?.unwrap_or(CHUNK);
        if !(MIN_CHUNK..=MAX_CHUNK).contains(&chunk_size) {
            let chunk_size = chunk_size.to_string();
            return Err(wrong(
                "multipart-chunk-size",
                &chunk_size,
                "5 MiB to 1 GiB, in bytes",
            ));
        }
        Ok(BucketConfig {
            service,
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            chunk_size,
            storage_class: parameter("storage-class"),
            environment,
            client,
        })
    }

    /// What tells this cache from all others: where its server is, bucket and prefix. The URI does
    /// not, as it is without the endpoint.
    ///
    /// # Errors
    /// When the bucket cannot be addressed in the way that was asked for.
    pub fn identity(&self) -> Result<String> {
        let server = match &self.service {
            // What region a bucket of Amazon's is in changes nothing: there is but one of a name.
            Service::S3(params) if params.endpoint.is_none() => "amazonaws.com".to_owned(),
            Service::S3(S3Params { endpoint, .. })
            | Service::Google { endpoint }
            | Service::Azure { endpoint, .. } => {
                let endpoint = endpoint.as_ref().map(Url::as_str);
                endpoint
                    .unwrap_or_default()
                    .trim_end_matches('/')
                    .to_owned()
            }
        };
        Ok(match server.as_str() {
            "" => self.to_string(),
            server => format!("{self} at {server}"),
        })
    }
}

/// The canonical URI, without parameters.
impl fmt::Display for BucketConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            Service::S3(_) => write!(f, "s3://{}", self.bucket)?,
            Service::Google { .. } => write!(f, "gs://{}", self.bucket)?,
            Service::Azure { account, .. } => write!(f, "az://{account}/{}", self.bucket)?,
        }
        match self.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

impl S3Params {
    fn parse(parameter: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let addressing = match parameter("addressing-style").as_deref() {
            None | Some("auto") => Addressing::Auto,
            Some("path") => Addressing::Path,
            Some("virtual") => Addressing::Virtual,
            Some(other) => return Err(wrong("addressing-style", other, "auto, path or virtual")),
        };
        Ok(S3Params {
            profile: parameter("profile"),
            region: parameter("region"),
            endpoint: endpoint(parameter)?,
            addressing,
            plain_http: scheme(parameter)? == "http",
        })
    }

    /// The URL of `bucket`, without a slash at the end.
    pub(super) fn bucket_url(&self, bucket: &str, region: &str) -> Result<String> {
        let dots = bucket.contains('.');
        let style = match (self.addressing, &self.endpoint) {
            (Addressing::Virtual, _) if dots => {
                return Err(Error::invalid(format!(
                    "the bucket {bucket} has a dot in its name, which addressing-style=virtual \
                     does not allow: use path"
                )));
            }
            (Addressing::Auto, None) if !dots => Addressing::Virtual,
            (Addressing::Auto, _) => Addressing::Path,
            (style, _) => style,
        };
        let mut url = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => amazon(region, self.plain_http)?,
        };
        if style == Addressing::Path {
            return Ok(format!("{}/{bucket}", url.as_str().trim_end_matches('/')));
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return Err(Error::invalid(format!(
                "addressing-style=virtual needs an endpoint with a name, not {host}"
            )));
        }
        let with_bucket = format!("{bucket}.{host}");
        if url.set_host(Some(&with_bucket)).is_err() {
            return Err(Error::invalid(format!("{with_bucket} is not a host")));
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
}

fn amazon(region: &str, plain_http: bool) -> Result<Url> {
    let scheme = if plain_http { "http" } else { "https" };
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let url = Url::parse(&format!("{scheme}://s3.{region}.{domain}"));
    match url {
        Ok(url) if !region.is_empty() && region.chars().all(valid) => Ok(url),
        _ => Err(Error::invalid(format!("{region:?} is not a region"))),
    }
}

/// The server that variables or the profile name in the place of Amazon's, in the order of botocore.
fn s3_endpoint(environment: &CloudEnvironment, profile: Option<&str>) -> Result<Option<Url>> {
    let ignored = environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    if ignored.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let variables = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let set = |name: &str| Some((name.to_owned(), environment.get(name)?.to_owned()));
    let of_profile = || {
        let name = profile_name(environment, profile);
        let profiles = Profiles::read(environment)?;
        let url = profiles.endpoint(name, "s3").map(str::to_owned);
        Ok::<_, Error>(url.map(|url| (format!("endpoint_url of the AWS profile {name}"), url)))
    };
    let found = match variables.into_iter().find_map(set) {
        Some(found) => Some(found),
        None => of_profile()?,
    };
    let Some((name, text)) = found else {
        return Ok(None);
    };
    let wrong = || Error::invalid(format!("{name} is an http or https URL, not {text:?}"));
    server_url(&text).map(Some).ok_or_else(wrong)
}

fn server_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    (matches!(url.scheme(), "http" | "https") && url.query().is_none()).then_some(url)
}

/// A URL, or as Nix once wanted it, a bare host.
fn endpoint(parameter: &dyn Fn(&str) -> Option<String>) -> Result<Option<Url>> {
    let Some(text) = parameter("endpoint") else {
        return Ok(None);
    };
    let full = if text.contains("://") {
        text.clone()
    } else {
        format!("{}://{text}", scheme(parameter)?)
    };
    let wrong = || wrong("endpoint", &text, "an http or https URL");
    server_url(&full).map(Some).ok_or_else(wrong)
}

fn scheme(parameter: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let scheme = parameter("scheme").unwrap_or_else(|| "https".to_owned());
    match scheme.as_str() {
        "http" | "https" => Ok(scheme),
        _ => Err(wrong("scheme", &scheme, "http or https")),
    }
}

fn bytes(name: &str, parameter: &dyn Fn(&str) -> Option<String>) -> Result<Option<u64>> {
    let Some(text) = parameter(name) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(wrong(name, &text, "a number of bytes")),
    }
}

fn wrong(name: &str, value: &str, is: &str) -> Error {
    Error::invalid(format!("the parameter {name} is {is}, not {value:?}"))
}

/// The parameters that a bucket's URI may have.
pub const PARAMETERS: &[&str] = &[
    "account",
    "addressing-style",
    "endpoint",
    "multipart-chunk-size",
    "multipart-threshold",
    "multipart-upload",
    "profile",
    "region",
    "scheme",
    "storage-class",
];

/// Bytes that a part has at least, but the last: S3 takes no smaller ones.
pub const MIN_CHUNK: u64 = 5 << 20;

/// Parts are held in memory.
const MAX_CHUNK: u64 = 1 << 30;

const CHUNK: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn parse(uri: &str) -> Result<BucketConfig> {
        let (scheme, rest) = uri.split_once("://").unwrap();
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let pairs: BTreeMap<_, _> = pairs.collect();
        let parameter = |name: &str| pairs.get(name).map(|value| value.to_string());
        let environment = CloudEnvironment::default();
        let client = ClientConfig::default();
        BucketConfig::from_parts(scheme, location, &parameter, environment, client)
    }

    #[test]
    fn urls() {
        let cases = [
            ("s3://b", "https://b.s3.us-east-1.amazonaws.com"),
            ("s3://b?scheme=http", "http://b.s3.us-east-1.amazonaws.com"),
            (
                "s3://b?region=cn-north-1",
                "https://b.s3.cn-north-1.amazonaws.com.cn",
            ),
            (
                "s3://b.c?region=eu-west-3",
                "https://s3.eu-west-3.amazonaws.com/b.c",
            ),
            (
                "s3://b?addressing-style=path",
                "https://s3.us-east-1.amazonaws.com/b",
            ),
            ("s3://b/p?endpoint=http://h:1/x/", "http://h:1/x/b"),
            ("s3://b?endpoint=h:9000&scheme=http", "http://h:9000/b"),
            ("s3://b?endpoint=h", "https://h/b"),
            (
                "s3://b?endpoint=https://h/x&addressing-style=virtual",
                "https://b.h/x",
            ),
        ];
        for (uri, url) in cases {
            let config = parse(uri).unwrap();
            let Service::S3(params) = &config.service else {
                panic!("{uri}");
            };
            let region = params.region.as_deref().unwrap_or("us-east-1");
            assert_eq!(
                params.bucket_url(&config.bucket, region).unwrap(),
                url,
                "{uri}"
            );
        }
    }

    #[test]
    fn names() {
        let cases = [
            (
                "s3://b/p/q/?region=x",
                "s3://b/p/q",
                "s3://b/p/q at amazonaws.com",
            ),
            (
                "s3://b?endpoint=http://h:1/x/",
                "s3://b",
                "s3://b at http://h:1/x",
            ),
            ("gs://b/p", "gs://b/p", "gs://b/p"),
            ("az://a/c/p", "az://a/c/p", "az://a/c/p"),
            ("az://c/p?account=a", "az://a/c/p", "az://a/c/p"),
        ];
        for (uri, shown, identity) in cases {
            let config = parse(uri).unwrap();
            assert_eq!(config.to_string(), shown);
            assert_eq!(config.identity().unwrap(), identity);
        }
    }

    #[test]
    fn variables_name_a_server() {
        let endpoint = |uri: &str, variables: &[(&str, &str)]| {
            let (_, query) = uri.split_once('?').unwrap_or((uri, ""));
            let parameter = |name: &str| {
                let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                let mut values = pairs.filter(|(key, _)| *key == name);
                values.next().map(|(_, value)| value.to_owned())
            };
            let variables = variables
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()));
            let variables = variables.collect();
            let environment = CloudEnvironment {
                variables,
                home: None,
            };
            let client = ClientConfig::default();
            let config = BucketConfig::from_parts("s3", "b", &parameter, environment, client);
            config.and_then(|config| config.identity())
        };
        let both = [
            ("AWS_ENDPOINT_URL_S3", "http://s3:1"),
            ("AWS_ENDPOINT_URL", "http://all"),
        ];
        assert_eq!(endpoint("s3://b", &both).unwrap(), "s3://b at http://s3:1");
        assert_eq!(
            endpoint("s3://b", &both[1..]).unwrap(),
            "s3://b at http://all"
        );
        assert_eq!(
            endpoint("s3://b?endpoint=http://u", &both).unwrap(),
            "s3://b at http://u"
        );
        let ignored = [both[0], ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "True")];
        assert_eq!(
            endpoint("s3://b", &ignored).unwrap(),
            "s3://b at amazonaws.com"
        );
        assert!(endpoint("s3://b", &[("AWS_ENDPOINT_URL", "x")]).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            ("s3://", "names no bucket"),
            ("s3://a b", "names no bucket"),
            ("az://c", "names no account"),
            ("s3://b?addressing-style=x", "auto, path or virtual"),
            ("s3://b?endpoint=ftp://h", "an http or https URL"),
            ("s3://b?scheme=ftp", "http or https"),
            ("s3://b?multipart-chunk-size=1", "5 MiB to 1 GiB"),
            ("s3://b?multipart-threshold=x", "a number of bytes"),
            ("s3://b?multipart-upload=x", "true or false"),
        ];
        for (uri, words) in cases {
            let error = parse(uri).unwrap_err().to_string();
            assert!(error.contains(words), "{uri}: {error}");
        }
        let virtual_hosts = |uri: &str| match parse(uri).unwrap().service {
            Service::S3(params) => params.bucket_url("b.c", "r").unwrap_err().to_string(),
            _ => panic!(),
        };
        assert!(virtual_hosts("s3://b.c?addressing-style=virtual").contains("dot"));
    }
}
