use super::DaemonStore;
use crate::worker::ops::AddBuildLog;
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};
use tk_path::StorePath;
use tk_store::{ByteStream, Error, Logs, Result, nar};

#[async_trait]
impl Logs for DaemonStore {
    /// Read from the daemon's folder of logs, where that is at hand: the protocol has no way to
    /// ask for them.
    async fn build_log(&self, drv: &StorePath) -> Result<Option<ByteStream>> {
        let Some(folder) = &self.config.log_dir else {
            return Err(self.unsupported("gives no build logs: the protocol cannot ask for them"));
        };
        let (first, rest) = drv.as_str().split_at(2);
        let plain = folder.join("drvs").join(first).join(rest);
        let mut compressed = plain.clone().into_os_string();
        compressed.push(".bz2");
        let open = move || open_first(&[plain, compressed.into()]);
        let opened = tk_store::blocking(open).await?;
        Ok(opened.map(|(file, path)| read(file, path)))
    }

    async fn add_build_log(&self, drv: &StorePath, log: ByteStream) -> Result<()> {
        let request = AddBuildLog { path: drv.clone() };
        let mut connection = self.connection().await?;
        connection.upload(&request, log, self.log()).await.map(drop)
    }
}

/// The first of the files that is there.
fn open_first(paths: &[PathBuf]) -> Result<Option<(File, PathBuf)>> {
    for path in paths {
        match File::open(path) {
            Ok(file) => return Ok(Some((file, path.clone()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("reading {}", path.display()), error)),
        }
    }
    Ok(None)
}

fn read(file: File, path: PathBuf) -> ByteStream {
    nar::produce(move |send| {
        let mut source: Box<dyn Read> = if path.extension().is_some_and(|e| e == "bz2") {
            Box::new(bzip2::read::MultiBzDecoder::new(file))
        } else {
            Box::new(file)
        };
        loop {
            let mut chunk = vec![0; CHUNK];
            let length = source.read(&mut chunk);
            let length = length.map_err(|e| Error::io(format!("reading {}", path.display()), e))?;
            chunk.truncate(length);
            if length == 0 || !send(Bytes::from(chunk)) {
                return Ok(());
            }
        }
    })
}

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;
