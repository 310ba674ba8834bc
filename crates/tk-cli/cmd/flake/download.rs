//! Files of servers, for inputs that are locked.

use crate::CommandContext;
use anyhow::Result;
use std::{
    fs::File,
    io::{self, Seek, Write},
    path::PathBuf,
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
            let mut response = request.send().await?;
            let text = |name: &str| {
                let value = response.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            immutable_link = text("link")
                .and_then(|link| immutable(&link))
                .or(immutable_link);
            let status = response.status();
            if let Some(next) = text("location").filter(|_| status.is_redirection()) {
                url = url.join(&next)?;
                continue;
            }
            anyhow::ensure!(
                status.is_success(),
                "the server answers HTTP status {status}"
            );
            let mut content: File = tempfile::tempfile_in(&self.scratch)?;
            while let Some(chunk) = response.chunk().await? {
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

/// The URL of a header `<URL>; rel="immutable"`.
fn immutable(link: &str) -> Option<String> {
    let (url, rest) = link.trim_start().strip_prefix('<')?.split_once('>')?;
    let rest = rest.replace(' ', "").to_ascii_lowercase();
    rest.contains("rel=\"immutable\"").then(|| url.to_owned())
}

const MAX_REDIRECTS: usize = 10;
