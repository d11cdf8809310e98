//! A real web server on a host: the distribution's nginx with a configuration of its own.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::error::{Error, IoContext, Result};
use super::host::Host;

/// The size of `/large`, in bytes. Byte number n has the value n modulo 251 (see [`large_byte`]).
pub const LARGE_BYTES: usize = 2 << 20;
/// How long nginx has to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The byte at `position` of `/large`. The period is a prime, so that a lost segment shows.
pub(super) fn large_byte(position: usize) -> u8 {
    u8::try_from(position % 251).expect("251 is less than 256")
}

/// nginx on a host. `/` says who it is and whom it sees; `/large?rate=200k` sends [`LARGE_BYTES`] bytes at that rate
/// per second. Every answer carries `X-Backend` (the host's name), `X-Client` and `X-Server` (the addresses it sees).
///
/// Dropping it stops it.
#[derive(Debug)]
pub struct Nginx {
    host: Host,
    ports: Vec<u16>,
    child: Option<Child>,
}

impl Nginx {
    /// Starts nginx on port 80 and waits until it accepts.
    ///
    /// # Errors
    /// When nginx is not installed, or ends, or does not accept in time; its log is in the error.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_on(host, &[80])
    }

    /// Starts nginx on several ports.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn start_on(host: &Host, ports: &[u16]) -> Result<Self> {
        let mut nginx = Self {
            host: host.clone(),
            ports: ports.to_vec(),
            child: None,
        };
        nginx.write_files()?;
        nginx.resume()?;
        Ok(nginx)
    }

    /// The host it runs on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Starts it again after [`Nginx::stop`]; does nothing while it runs.
    ///
    /// # Errors
    /// As [`Nginx::start`].
    pub fn resume(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let error_log = self.file("error.log");
        let log =
            fs::File::create(self.file("output.log")).to_do(|| "create nginx's log".into())?;
        let child = self
            .host
            .command("nginx")?
            .arg("-p")
            .arg(self.host.directory())
            .arg("-e")
            .arg(&error_log)
            .arg("-c")
            .arg(self.file("nginx.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().to_do(|| "share nginx's log".into())?)
            .stderr(log)
            .spawn()
            .map_err(|source| Error::MissingTool {
                program: "nginx".into(),
                package: "nginx",
                source,
            })?;
        self.child = Some(child);
        self.wait_until_it_accepts()
    }

    /// Stops it at once, as `systemctl stop nginx` would: open connections are closed, later ones are refused.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        let master = Pid::from_raw(child.id().cast_signed());
        // It may have ended by itself; `wait` then returns at once.
        let _ = kill(master, Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while child
            .try_wait()
            .to_do(|| format!("wait for nginx on {}", self.host.name()))?
            .is_none()
        {
            if Instant::now() > deadline {
                // The master and its worker are one process group.
                let _ = killpg(master, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Leaves it running when this value goes: for a testbed that is kept.
    pub fn leave(mut self) {
        self.child = None;
    }

    fn wait_until_it_accepts(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let addresses: Vec<(IpAddr, u16)> = self
            .ports
            .iter()
            .map(|port| (self.host.address(), *port))
            .collect();
        loop {
            let refusal = self.host.run_in(|| {
                addresses
                    .iter()
                    .find_map(|address| TcpStream::connect(address).err())
            })?;
            let Some(refusal) = refusal else {
                return Ok(());
            };
            let ended = match &mut self.child {
                Some(child) => child.try_wait().to_do(|| "look after nginx".into())?,
                None => None,
            };
            let what = format!("nginx on {}", self.host.name());
            if let Some(status) = ended {
                self.child = None;
                return Err(Error::Ended {
                    what,
                    status,
                    log: self.log(),
                });
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("that {what} accepts"),
                    waited: PATIENCE,
                    last: refusal.to_string(),
                    log: self.log(),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write_files(&self) -> Result<()> {
        let large: Vec<u8> = (0..LARGE_BYTES).map(large_byte).collect();
        for (name, content) in [
            ("large", large),
            ("nginx.conf", self.configuration().into_bytes()),
        ] {
            let path = self.file(name);
            fs::write(&path, content).to_do(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn configuration(&self) -> String {
        let name = self.host.name();
        let files = self.host.directory().display();
        let listen: String = self
            .ports
            .iter()
            .map(|port| {
                let ipv6 = match self.host.has_ipv6() {
                    true => format!("        listen [::]:{port} backlog=4096;\n"),
                    false => String::new(),
                };
                format!("        listen {port} backlog=4096;\n{ipv6}")
            })
            .collect();
        // As root, so that the worker may read files wherever the testbed has its directory.
        format!(
            r#"# nginx of the testbed's host {name}
daemon off;
user root;
worker_processes 1;
pid {files}/nginx.pid;
error_log {files}/error.log notice;

events {{
    worker_connections 4096;
}}

http {{
    access_log off;
    server_tokens off;
    default_type text/plain;
    keepalive_requests 1000000;
    client_body_temp_path {files}/body;
    proxy_temp_path {files}/proxy;
    fastcgi_temp_path {files}/fastcgi;
    uwsgi_temp_path {files}/uwsgi;
    scgi_temp_path {files}/scgi;

    server {{
{listen}
        add_header X-Backend {name} always;
        add_header X-Client $remote_addr always;
        add_header X-Server $server_addr always;

        location = / {{
            return 200 "I am {name}. I see the client $remote_addr asking $server_addr.\n";
        }}
        location = /large {{
            alias {files}/large;
            limit_rate $arg_rate;
        }}
    }}
}}
"#
        )
    }

    fn file(&self, name: &str) -> PathBuf {
        self.host.directory().join(name)
    }

    fn log(&self) -> String {
        ["output.log", "error.log"]
            .map(|name| fs::read_to_string(self.file(name)).unwrap_or_default())
            .concat()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error}");
        }
    }
}
