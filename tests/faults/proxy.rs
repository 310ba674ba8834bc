//! A TCP proxy before a server: each request that comes through, and each piece of an answer, is a
//! step that may go wrong.

use super::steps::{Kind, Steps};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Listens until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    steps: Arc<Steps>,
    over: AtomicBool,
    /// Both ends of all connections, so that none is open when this is over.
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy before `target`, of whose `steps` one may go wrong.
    pub fn start(target: SocketAddr, steps: &Arc<Steps>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target,
            steps: steps.clone(),
            over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.over.load(Ordering::SeqCst) {
                    return;
                }
                accepting.connect(client);
            }
        });
        Proxy { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for stream in self.shared.open().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // It looks whether this is over when somebody comes.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(self: &Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.target) else {
            return;
        };
        let clones = [&client, &server].map(|stream| stream.try_clone().expect("a stream"));
        let [to_client, to_server] = clones;
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            self.open().push(stream.try_clone().expect("a stream"));
        }
        let pumps = [
            (client, to_server, "the client"),
            (server, to_client, "the server"),
        ];
        // What the client says after the server has spoken is another request.
        let answered = Arc::new(AtomicBool::new(true));
        for (from, to, who) in pumps {
            let (shared, answered) = (self.clone(), answered.clone());
            let pump = move || shared.pump(from, to, who == "the client", &answered);
            thread::spawn(pump);
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, asks: bool, answered: &AtomicBool) {
        let mut piece = [0; PIECE];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            let is_step = if asks {
                answered.swap(false, Ordering::SeqCst)
            } else {
                true
            };
            match is_step.then(|| self.steps.take()).flatten() {
                None => {}
                Some(Kind::Fail | Kind::Gone) => break,
                // The rest of the answer is lost, but the end comes as it should.
                Some(Kind::Cut) => {
                    let _ = to.write_all(&piece[..length / 2]);
                    break;
                }
                // Both ends stay open, and silent.
                Some(Kind::Stall) => return,
                // Others overtake it.
                Some(Kind::Reorder) => thread::sleep(LATE),
            }
            if !asks {
                answered.store(true, Ordering::SeqCst);
            }
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        for stream in [from, to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Bytes that are a step.
const PIECE: usize = 2048;

/// How long what is overtaken is held back.
const LATE: Duration = Duration::from_millis(20);
