//! A summary as a line for people. Names come from outside, so what a screen would act on is escaped.

use std::fmt::{self, Display, Formatter};

use super::{Ack, Connect, Filter, Hidden, Publish, Reason, Summary, Text};

impl Display for Hidden {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes)?;
        if self.bytes > 0 { write!(f, " #{}", self.digest) } else { Ok(()) }
    }
}

impl Display for Text {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shown(text) => write!(f, "{}", text.escape_debug()),
            Self::Hidden(hidden) => write!(f, "<{hidden}>"),
        }
    }
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} (0x{:02X})", self.name, self.code)
    }
}

/// Parts of a line, each if it is there.
struct Parts<'a>(Vec<Option<String>>, &'a str);

impl Display for Parts<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let parts: Vec<&str> = self.0.iter().flatten().map(String::as_str).collect();
        f.write_str(&parts.join(self.1))
    }
}

fn flag(is: bool, said: &str) -> Option<String> {
    is.then(|| said.to_owned())
}

impl Summary {
    /// As the standard writes it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "CONNECT",
            Self::ConnAck { .. } => "CONNACK",
            Self::Publish(_) => "PUBLISH",
            Self::PubAck(_) => "PUBACK",
            Self::PubRec(_) => "PUBREC",
            Self::PubRel(_) => "PUBREL",
            Self::PubComp(_) => "PUBCOMP",
            Self::Subscribe { .. } => "SUBSCRIBE",
            Self::SubAck { .. } => "SUBACK",
            Self::Unsubscribe { .. } => "UNSUBSCRIBE",
            Self::UnsubAck { .. } => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect { .. } => "DISCONNECT",
            Self::Auth { .. } => "AUTH",
            Self::Refused { .. } => "refused",
            Self::Ended { .. } => "ended",
        }
    }

    fn details(&self) -> String {
        match self {
            Self::Connect(connect) => connect.to_string(),
            Self::Publish(publish) => publish.to_string(),
            Self::ConnAck { reason, session_present, keep_alive_s, expiry_s, assigned } => Parts(
                vec![
                    Some(reason.to_string()),
                    flag(*session_present, "session present"),
                    keep_alive_s.map(|s| format!("keep-alive {s} s")),
                    expiry_s.map(|s| format!("expiry {s} s")),
                    assigned.as_ref().map(|name| format!("assigned {name}")),
                ],
                ", ",
            )
            .to_string(),
            Self::PubAck(ack) | Self::PubRec(ack) | Self::PubRel(ack) | Self::PubComp(ack) => ack.to_string(),
            Self::Subscribe { id, filters, identifier } => {
                let filters = filters.iter().map(|filter| Some(filter.to_string())).collect();
                let identifier = identifier.map_or_else(String::new, |n| format!(", subscription identifier {n}"));
                format!("{}, id {id}{identifier}", Parts(filters, "; "))
            }
            Self::SubAck { id, reasons } | Self::UnsubAck { id, reasons } => {
                let reasons = reasons.iter().map(|reason| Some(reason.to_string())).collect();
                format!("id {id}, {}", Parts(reasons, "; "))
            }
            Self::Unsubscribe { id, filters } => {
                let filters = filters.iter().map(|filter| Some(filter.to_string())).collect();
                format!("{}, id {id}", Parts(filters, "; "))
            }
            Self::PingReq | Self::PingResp => String::new(),
            Self::Disconnect { reason, expiry_s } => {
                Parts(vec![Some(reason.to_string()), expiry_s.map(|s| format!("expiry {s} s"))], ", ").to_string()
            }
            Self::Auth { reason } => reason.to_string(),
            Self::Refused { reason, why } => format!("{why}, {reason}"),
            Self::Ended { why } => why.clone(),
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(format!("{:<11} {}", self.name(), self.details()).trim_end())
    }
}

impl Display for Ack {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.id)?;
        if self.reason.code > 0 { write!(f, ", {}", self.reason) } else { Ok(()) }
    }
}

impl Display for Connect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let will = |will: &super::Will| {
            let retain = if will.retain { " retain" } else { "" };
            format!("will {} QoS {}{retain} after {} s, {}", will.topic, will.qos, will.delay_s, will.payload)
        };
        let parts = vec![
            Some(format!("{}, {}", self.client, self.protocol)),
            flag(self.clean_start, "clean start"),
            Some(format!("keep-alive {} s", self.keep_alive_s)),
            (self.expiry_s > 0).then(|| format!("expiry {} s", self.expiry_s)),
            self.receive_max.map(|n| format!("receive maximum {n}")),
            self.packet_bytes_max.map(|n| format!("packets of at most {n} bytes")),
            (self.topic_alias_max > 0).then(|| format!("{} topic aliases", self.topic_alias_max)),
            self.user_name.as_ref().map(|name| format!("user name {name}")),
            flag(self.password, "a password"),
            flag(self.auth_method, "an authentication method"),
            self.will.as_ref().map(will),
            (self.user_properties > 0).then(|| format!("{} user properties", self.user_properties)),
        ];
        write!(f, "{}", Parts(parts, ", "))
    }
}

impl Display for Publish {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let identifiers: Vec<Option<String>> = self.identifiers.iter().map(|n| Some(n.to_string())).collect();
        let parts = vec![
            Some(format!("{} QoS {}", self.topic, self.qos)),
            self.id.map(|id| format!("id {id}")),
            flag(self.dup, "dup"),
            flag(self.retain, "retain"),
            Some(self.payload.to_string()),
            self.alias.map(|n| format!("alias {n}")),
            self.expiry_s.map(|s| format!("expiry {s} s")),
            self.response_topic.as_ref().map(|topic| format!("response to {topic}")),
            self.correlation_data.as_ref().map(|data| format!("correlation data {data}")),
            self.content_type.as_ref().map(|data| format!("content type of {data}")),
            (!identifiers.is_empty()).then(|| format!("subscription {}", Parts(identifiers, " "))),
            (self.user_properties > 0).then(|| format!("{} user properties", self.user_properties)),
        ];
        write!(f, "{}", Parts(parts, ", "))
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let parts = vec![
            Some(format!("{} QoS {}", self.filter, self.qos)),
            flag(self.no_local, "no local"),
            flag(self.retain_as_published, "retain as published"),
            (self.retain_handling > 0).then(|| format!("retain handling {}", self.retain_handling)),
        ];
        write!(f, "{}", Parts(parts, " "))
    }
}
