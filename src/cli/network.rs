//! The options about ways through the network.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use clap::Args;

use super::exit::Failure;
use crate::ftp::{Active, NetworkSettings, Proxy};

/// Options and `-o` words alike.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct NetworkArguments {
    /// Connect from this local address.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind: Option<IpAddr>,

    /// Go through a proxy: socks5://[user:password@]host[:port] or http://…, which must allow
    /// CONNECT to the ports of data connections.
    #[arg(long, value_name = "URL", value_parser = Proxy::parse)]
    pub(crate) proxy: Option<Proxy>,

    /// Let the server open data connections to us (PORT, EPRT).
    #[arg(long, conflicts_with = "proxy")]
    pub(crate) active: bool,

    /// With --active: the ports it may connect to.
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports)]
    pub(crate) active_ports: Option<RangeInclusive<u16>>,

    /// With --active: our address as the server sees it.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) active_address: Option<IpAddr>,

    /// Believe the address that PASV names; only with servers that you trust.
    #[arg(long)]
    pub(crate) passive_host: bool,
}

impl NetworkArguments {
    /// An `-o` word; false if it is not one of these.
    pub(crate) fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let address =
            || value.parse().map_err(|_| "must be an address, such as 192.0.2.1".to_owned());
        match name {
            "bind" => self.bind = Some(address()?),
            "proxy" => self.proxy = Some(Proxy::parse(value)?),
            "active" => self.active = true,
            "active_ports" => self.active_ports = Some(parse_ports(value)?),
            "active_address" => self.active_address = Some(address()?),
            "passive_host" => self.passive_host = true,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What is not said here is taken from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            bind: self.bind.or(other.bind),
            proxy: self.proxy.or(other.proxy),
            active: self.active || other.active,
            active_ports: self.active_ports.or(other.active_ports),
            active_address: self.active_address.or(other.active_address),
            passive_host: self.passive_host || other.passive_host,
        }
    }

    pub(crate) fn settings(self) -> Result<NetworkSettings, Failure> {
        if !self.active && (self.active_ports.is_some() || self.active_address.is_some()) {
            return Err(Failure::usage(
                "--active-ports and --active-address are of use only with --active",
            ));
        }
        if self.active && self.proxy.is_some() {
            return Err(Failure::usage(
                "a server cannot connect to us through a proxy: no --active with --proxy",
            ));
        }
        let active = Active { address: self.active_address, ports: self.active_ports };
        Ok(NetworkSettings {
            bind: self.bind,
            proxy: self.proxy,
            active: self.active.then_some(active),
            passive_host: self.passive_host,
        })
    }
}

fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err("must be two ports, such as 50000-50100".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(parse_ports("5000-5010"), Ok(5000..=5010));
        assert_eq!(parse_ports("21"), Ok(21..=21));
        for bad in ["", "0-1", "9-8", "a-b", "1-70000"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_needs_active_says_so() {
        let mut words = NetworkArguments::default();
        assert_eq!(words.take("active_ports", "5000-5010"), Ok(true));
        assert!(words.clone().settings().is_err());
        words.take("active", "").unwrap();
        assert!(words.settings().unwrap().active.is_some());
    }
}
