//! Files of servers, for inputs that are locked.

use crate::CommandContext;
use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::{self, Seek, Write},
    path::PathBuf,
    time::Duration,
};
use tk_cache::http::Client;
use tk_project::fetch::{DownloadedFile, HttpDownload};
use tokio::runtime::Handle;
use url::Url;

/// Loads over HTTP as stores do: the same certificates, proxies and times.
pub struct HttpClientDownload {
    client: Client,
    runtime: Handle,
    /// Where files are put, without a name.
    scratch: PathBuf,
}

impl HttpClientDownload {
    /// Makes ready to load. Nothing is sent yet.
    pub fn new(cx: &CommandContext, scratch: PathBuf) -> Result<Self> {
        Ok(HttpClientDownload {
            client: tk_open::http_client(&cx.settings)?,
            runtime: Handle::current(),
            scratch,
        })
    }

    async fn load(&self, url: &str, headers: &[(String, String)]) -> Result<DownloadedFile> {
        let mut url = Url::parse(url)?;
        let origin = url.origin();
        let mut immutable_link = None;
        for _ in 0..MAX_REDIRECTS {
            anyhow::ensure!(
                matches!(url.scheme(), "http" | "https"),
                "it leads to {}:",
                url.scheme()
            );
            let mut request = self.client.raw().get(url.clone());
            // Secrets are for the server that they were given for.
            if url.origin() == origin {
                for (name, value) in headers {
                    request = request.header(name, value);
                }
            }
            let mut response = in_time(request.send()).await??;
            let links = response.headers().get_all("link").iter();
            let mut links = links.filter_map(|link| immutable(link.to_str().ok()?));
            immutable_link = links.next_back().or(immutable_link);
            let location = response.headers().get("location");
            let location = location.and_then(|value| value.to_str().ok());
            let status = response.status();
            if let Some(next) = location.filter(|_| status.is_redirection()) {
                url = url.join(next)?;
                continue;
            }
            anyhow::ensure!(
                status.is_success(),
                "the server answers HTTP status {status}"
            );
            let mut content: File = tempfile::tempfile_in(&self.scratch)?;
            let mut left = MAX_BYTES;
            while let Some(chunk) = in_time(response.chunk()).await?? {
                left = left
                    .checked_sub(chunk.len() as u64)
                    .with_context(|| format!("it has more than {MAX_BYTES} bytes"))?;
                content.write_all(&chunk)?;
            }
            content.rewind()?;
            return Ok(DownloadedFile {
                content,
                immutable_link,
            });
        }
        anyhow::bail!("there are more than {MAX_REDIRECTS} redirects")
    }
}

impl HttpDownload for HttpClientDownload {
    fn download(&self, url: &str, headers: &[(String, String)]) -> io::Result<DownloadedFile> {
        let loaded = self.runtime.block_on(self.load(url, headers));
        loaded.map_err(|error| io::Error::other(crate::output::line_of(&error)))
    }
}

/// What comes before the server has been silent for too long.
async fn in_time<T>(work: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(STALL, work).await;
    done.with_context(|| format!("the server sent nothing for {} s", STALL.as_secs()))
}

/// The URL of a header that is, as a whole, `<URL>; rel="immutable"`. Nix takes no other form.
fn immutable(link: &str) -> Option<String> {
    let (url, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    rest.eq_ignore_ascii_case("; rel=\"immutable\"")
        .then(|| url.to_owned())
}

/// How long a server may be silent. As `stalled-download-timeout` of Nix.
const STALL: Duration = Duration::from_secs(300);
/// Bytes of a download, packed.
const MAX_BYTES: u64 = 16 << 30;
const MAX_REDIRECTS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_counts_if_it_is_the_whole_header() {
        for link in [
            r#"<https://h/a>; rel="immutable""#,
            r#" <https://h/a>; REL="Immutable" "#,
        ] {
            assert_eq!(immutable(link).as_deref(), Some("https://h/a"), "{link}");
        }
        for link in [
            r#"<https://h/x>; rel="next", <https://h/a>; rel="immutable""#,
            r#"<https://h/a>; rel="immutable", <https://h/x>; rel="next""#,
            r#"<https://h/a>; rel=immutable"#,
            r#"https://h/a; rel="immutable""#,
        ] {
            assert_eq!(immutable(link), None, "{link}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_left() {
        let error = in_time(std::future::pending::<()>()).await.unwrap_err();
        assert!(error.to_string().contains("nothing for 300 s"), "{error}");
    }
}
