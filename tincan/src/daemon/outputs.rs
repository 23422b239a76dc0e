//! What the node wants, done.

use crate::daemon::Daemon;
use crate::dataplane::{Command, Protection};
use crate::dtls::Session;
use crate::edge::xmpp::Account;
use crate::link::{LinkId, Role};
use crate::node::{LinkProtection, Output, Service};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::notification::{LinkStatus, Notification};
use crate::wire::uid::Uid;

impl Daemon {
    pub(super) fn carry_out_all(&mut self) {
        while let Some(output) = self.node.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        self.fast_path.note(&output);
        self.underlay.note(&output);
        self.keeper.note(&output);
        match output {
            Output::Notify(notification) => self.notify(&notification),
            Output::Login { service: Service { username, password, host, port }, uid } => {
                self.xmpp.login(Account { username, password, host, port, uid });
            }
            Output::Signal { to, kind, data } => self.xmpp.send(to, kind, data),
            Output::Ice(command) => self.ice.command(command),
            Output::OpenLink { link, uid, role, protection } => {
                tracing::info!(%link, %uid, "new link");
                self.open_link(link, uid, role, protection);
            }
            Output::RenewSession { link, role, expected } => {
                if let Some(session) = self.new_session(link, role, expected) {
                    self.engine.command(Command::RenewSession { link, session });
                }
            }
            Output::SetSendTag { link, vni } => self.engine.command(Command::SetSendTag { link, tag: vni }),
            Output::SetPath { link, path } => {
                tracing::info!(%link, remote = %path.remote, relayed = path.relay.is_some(), "path");
                self.engine.command(Command::SetPath { link, path });
            }
            Output::SetForwarding { link, enabled } => self.engine.command(Command::SetForwarding { link, enabled }),
            Output::RemoveLink { link } => self.engine.command(Command::RemoveLink { link }),
            Output::MapPeer { uid, ip4, ip6 } => self.engine.command(Command::MapPeer { uid, ip4, ip6 }),
            Output::UnmapPeer { uid } => self.engine.command(Command::UnmapPeer { uid }),
            Output::SetSwitchMode { enabled } => self.engine.command(Command::SetSwitchMode { enabled }),
            Output::SetLogging { level } => self.log.set(level),
        }
    }

    fn notify(&mut self, notification: &Notification) {
        if let Notification::ConnectionStatus { uid, status } = notification {
            match status {
                LinkStatus::Online | LinkStatus::Offline => tracing::info!(%uid, status = status.name(), "link"),
                LinkStatus::Unknown => tracing::debug!(%uid, status = status.name(), "link"),
            }
        }
        match self.callback {
            Some(callback) => self.udp.notify(callback, notification),
            None => self.counters.notifications_without_controller += 1,
        }
    }

    fn open_link(&mut self, link: LinkId, uid: Uid, role: Role, protection: LinkProtection) {
        let protection = match protection {
            LinkProtection::Plain { receive_vni } => Protection::Plain { receive_tag: receive_vni },
            LinkProtection::Dtls { expected } => {
                let Some(session) = self.new_session(link, role, expected) else { return };
                Protection::Dtls(session)
            }
        };
        self.engine.command(Command::AddLink { link, uid, protection });
    }

    /// A session for a link; without one, the link is over.
    fn new_session(&mut self, link: LinkId, role: Role, expected: Fingerprint) -> Option<Box<Session>> {
        let identity = self.identity.as_ref()?;
        match Session::new(identity, role, expected) {
            Ok(session) => Some(Box::new(session)),
            Err(error) => {
                let reason = format!("cannot make a DTLS session: {error}");
                self.node.handle_session_ended(std::time::Instant::now(), link, reason);
                None
            }
        }
    }
}
