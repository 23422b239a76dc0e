//! Prosody: an XMPP server in a namespace, with certificates of its own authority.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::netns::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait;

/// The domain of every account.
pub const DOMAIN: &str = "tincan.test";
/// RFC 6120: STARTTLS.
pub const PORT: u16 = 5222;
/// XEP-0368: TLS from the first byte.
pub const DIRECT_PORT: u16 = 5223;
/// How long the server may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct ProsodyOptions {
    /// Node parts; each account's password is its name with "pw-" before it.
    pub accounts: Vec<String>,
    /// Those who are in each other's roster, with subscriptions both ways.
    pub group: Vec<String>,
    /// Names in the certificate.
    pub certificate_for: String,
    /// Whether the server offers STARTTLS and insists on encryption.
    pub encryption: bool,
    /// `conflict_resolve`: what happens when a resource is bound a second time.
    pub conflict: &'static str,
}

impl Default for ProsodyOptions {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Self {
            accounts: names(&["alice", "bob", "mallory"]),
            group: names(&["alice", "bob"]),
            certificate_for: DOMAIN.to_owned(),
            encryption: true,
            conflict: "kick_old",
        }
    }
}

/// The password of an account.
pub fn password(account: &str) -> String {
    format!("pw-{account}")
}

/// A server; stopped on drop.
#[derive(Debug)]
pub struct Prosody {
    process: Option<Process>,
    namespace: Namespace,
    address: SocketAddr,
    scratch: Scratch,
}

impl Prosody {
    /// Starts a server on `ip` of `namespace` and waits until it listens.
    pub fn start(namespace: &Namespace, ip: &str, options: &ProsodyOptions) -> Result<Self> {
        let scratch = Scratch::new("prosody")?;
        let address = SocketAddr::new(ip.parse().context("the server's address")?, PORT);
        let mut server = Self { process: None, namespace: namespace.clone(), address, scratch };
        make_certificates(server.scratch.path(), &options.certificate_for)?;
        fs::create_dir(server.path("data")).context("making the data directory")?;
        write(&server.path("groups"), &groups(options))?;
        write(&server.path("prosody.cfg.lua"), &server.configuration(options))?;
        for account in &options.accounts {
            let words = ["register", account, DOMAIN, &password(account)];
            run(Command::new("prosodyctl").arg("--config").arg(server.path("prosody.cfg.lua")).args(words))?;
        }
        server.resume()?;
        Ok(server)
    }

    /// Where it listens for STARTTLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the authority that signed the server's.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// The server's certificate's SHA-256, 95 characters.
    pub fn fingerprint(&self) -> Result<String> {
        let path = self.path("server.crt");
        let output = run(Command::new("openssl").args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(path))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, fingerprint) = text.trim().split_once('=').context("no fingerprint in openssl's answer")?;
        Ok(fingerprint.to_owned())
    }

    /// Stops it, as for a restart.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.stop()?;
        }
        Ok(())
    }

    /// Starts it again with the accounts it had.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the server runs already");
        let arguments = ["--config", &self.path("prosody.cfg.lua").display().to_string(), "-F"].map(str::to_owned);
        let process = Process::start(&self.namespace, Path::new("prosody"), &arguments, &self.path("output"))?;
        self.process = Some(process);
        let listens = || TcpStream::connect(self.address).is_ok();
        let ready = self.namespace.enter(|| wait::until(START_DEADLINE, "prosody to listen", listens));
        ready.with_context(|| self.log())
    }

    /// Stops it in the middle of whatever it does, as if the network were cut.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Drops every packet of its namespace without a word.
    pub fn cut_network(&self) -> Result<()> {
        self.namespace.exec("nft add table inet cut")?;
        let chain = "nft add chain inet cut input { type filter hook input priority 0 ; policy drop ; }";
        self.namespace.exec(chain).map(drop)
    }

    /// Undoes that.
    pub fn mend_network(&self) -> Result<()> {
        self.namespace.exec("nft delete table inet cut").map(drop)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the server does not run")?.signal(signal)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn configuration(&self, options: &ProsodyOptions) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let ProsodyOptions { accounts: _, group: _, certificate_for: _, encryption, conflict } = options;
        let (modules, direct) = if *encryption { ("\"tls\", ", DIRECT_PORT.to_string()) } else { ("", String::new()) };
        format!(
            "run_as_root = true\n\
             pidfile = \"{pid}\"\n\
             data_path = \"{data}\"\n\
             interfaces = {{ \"{ip}\" }}\n\
             c2s_ports = {{ {PORT} }}\n\
             c2s_direct_tls_ports = {{ {direct} }}\n\
             c2s_require_encryption = {encryption}\n\
             allow_unencrypted_plain_auth = {plain}\n\
             conflict_resolve = \"{conflict}\"\n\
             network_settings = {{ nagle = false }}\n\
             authentication = \"internal_hashed\"\n\
             storage = \"internal\"\n\
             groups_file = \"{groups}\"\n\
             modules_enabled = {{ {modules}\"roster\", \"saslauth\", \"disco\", \"ping\", \"time\", \"smacks\", \"groups\" }}\n\
             modules_disabled = {{ \"s2s\", \"admin_shell\" }}\n\
             log = {{ {{ levels = {{ min = \"debug\" }}, to = \"file\", filename = \"{log}\" }} }}\n\
             ssl = {{ key = \"{key}\", certificate = \"{certificate}\" }}\n\
             c2s_direct_tls_ssl = ssl\n\
             VirtualHost \"{DOMAIN}\"\n\
             ssl = {{ key = \"{key}\", certificate = \"{certificate}\" }}\n",
            pid = path("pid"),
            data = path("data"),
            ip = self.address.ip(),
            plain = !encryption,
            groups = path("groups"),
            log = path("log"),
            key = path("server.key"),
            certificate = path("server.crt"),
        )
    }
}

impl Drop for Prosody {
    fn drop(&mut self) {
        // A frozen process does not obey.
        if let Some(Err(error)) = self.process.as_ref().map(|process| process.signal(Signal::SIGCONT)) {
            eprintln!("prosody: {error:#}");
        }
    }
}

fn groups(options: &ProsodyOptions) -> String {
    let members: Vec<String> = options.group.iter().map(|name| format!("{name}@{DOMAIN}\n")).collect();
    format!("[nodes]\n{}", members.concat())
}

/// An authority and a server certificate it signed, as `ca.crt`, `server.key` and `server.crt`.
pub fn make_certificates(directory: &Path, name: &str) -> Result<()> {
    let steps = [
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=authority -keyout ca.key -out ca.crt"
            .to_owned(),
        format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -addext subjectAltName=DNS:{name} \
             -keyout server.key -out server.csr"
        ),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -copy_extensions copy -out server.crt"
            .to_owned(),
    ];
    for step in steps {
        run(Command::new("openssl").args(step.split_whitespace()).current_dir(directory))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(output)
}
