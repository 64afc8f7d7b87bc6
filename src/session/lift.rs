//! MQTT 3.1.1 packets as MQTT 5 packets, and back.

use ntex_mqtt::v3::codec as v3;
use ntex_mqtt::v5::codec as v5;

/// A client's packet, raised.
#[must_use]
pub fn packet(packet: v3::Packet) -> v5::Packet {
    match packet {
        v3::Packet::Connect(connect) => v5::Packet::Connect(Box::new(self::connect(*connect))),
        v3::Packet::ConnectAck(_) => v5::Packet::ConnectAck(Box::default()),
        v3::Packet::PublishAck { packet_id } => v5::Packet::PublishAck(ack(packet_id)),
        v3::Packet::PublishReceived { packet_id } => v5::Packet::PublishReceived(ack(packet_id)),
        v3::Packet::PublishRelease { packet_id } => v5::Packet::PublishRelease(ack2(packet_id)),
        v3::Packet::PublishComplete { packet_id } => v5::Packet::PublishComplete(ack2(packet_id)),
        v3::Packet::Subscribe { packet_id, topic_filters } => v5::Packet::Subscribe(v5::Subscribe {
            packet_id,
            id: None,
            user_properties: Vec::new(),
            topic_filters: topic_filters
                .into_iter()
                .map(|(filter, qos)| (filter, v5::SubscriptionOptions { qos, ..v5::SubscriptionOptions::default() }))
                .collect(),
        }),
        v3::Packet::SubscribeAck { packet_id, .. } => v5::Packet::SubscribeAck(v5::SubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: Vec::new(),
        }),
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            v5::Packet::Unsubscribe(v5::Unsubscribe { packet_id, user_properties: Vec::new(), topic_filters })
        }
        v3::Packet::UnsubscribeAck { packet_id } => v5::Packet::UnsubscribeAck(v5::UnsubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: Vec::new(),
        }),
        v3::Packet::PingRequest => v5::Packet::PingRequest,
        v3::Packet::PingResponse => v5::Packet::PingResponse,
        v3::Packet::Disconnect => {
            v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection))
        }
    }
}

fn connect(connect: v3::Connect) -> v5::Connect {
    v5::Connect {
        clean_start: connect.clean_session,
        keep_alive: connect.keep_alive,
        session_expiry_interval_secs: 0,
        auth_method: None,
        auth_data: None,
        request_problem_info: false,
        request_response_info: false,
        receive_max: None,
        topic_alias_max: 0,
        user_properties: Vec::new(),
        max_packet_size: None,
        last_will: connect.last_will.map(|will| v5::LastWill {
            qos: will.qos,
            retain: will.retain,
            topic: will.topic,
            message: will.message,
            will_delay_interval_sec: None,
            correlation_data: None,
            message_expiry_interval: None,
            content_type: None,
            user_properties: Vec::new(),
            is_utf8_payload: None,
            response_topic: None,
        }),
        client_id: connect.client_id,
        username: connect.username,
        password: connect.password,
    }
}

fn ack(packet_id: std::num::NonZeroU16) -> v5::PublishAck {
    v5::PublishAck { packet_id, ..v5::PublishAck::default() }
}

fn ack2(packet_id: std::num::NonZeroU16) -> v5::PublishAck2 {
    v5::PublishAck2 { packet_id, ..v5::PublishAck2::default() }
}

/// A packet for a client, lowered. None for one that MQTT 3.1.1 does not have or a client does not receive.
#[must_use]
pub fn lower(packet: v5::Packet) -> Option<v3::Packet> {
    match packet {
        v5::Packet::ConnectAck(ack) => Some(v3::Packet::ConnectAck(v3::ConnectAck {
            return_code: return_code(ack.reason_code),
            session_present: ack.session_present,
        })),
        v5::Packet::PublishAck(ack) => Some(v3::Packet::PublishAck { packet_id: ack.packet_id }),
        v5::Packet::PublishReceived(ack) => Some(v3::Packet::PublishReceived { packet_id: ack.packet_id }),
        v5::Packet::PublishRelease(ack) => Some(v3::Packet::PublishRelease { packet_id: ack.packet_id }),
        v5::Packet::PublishComplete(ack) => Some(v3::Packet::PublishComplete { packet_id: ack.packet_id }),
        v5::Packet::SubscribeAck(ack) => Some(v3::Packet::SubscribeAck {
            packet_id: ack.packet_id,
            status: ack.status.into_iter().map(subscribe_code).collect(),
        }),
        v5::Packet::UnsubscribeAck(ack) => Some(v3::Packet::UnsubscribeAck { packet_id: ack.packet_id }),
        v5::Packet::PingResponse => Some(v3::Packet::PingResponse),
        v5::Packet::Connect(_)
        | v5::Packet::Subscribe(_)
        | v5::Packet::Unsubscribe(_)
        | v5::Packet::PingRequest
        | v5::Packet::Disconnect(_)
        | v5::Packet::Auth(_) => None,
    }
}

/// MQTT 3.1.1, table 3.1: five reasons for everything.
fn return_code(reason: v5::ConnectAckReason) -> v3::ConnectAckReason {
    use v3::ConnectAckReason as Code;
    use v5::ConnectAckReason as Reason;
    match reason {
        Reason::Success => Code::ConnectionAccepted,
        Reason::UnsupportedProtocolVersion => Code::UnacceptableProtocolVersion,
        Reason::ClientIdentifierNotValid => Code::IdentifierRejected,
        Reason::BadUserNameOrPassword => Code::BadUserNameOrPassword,
        Reason::NotAuthorized | Reason::Banned | Reason::BadAuthenticationMethod => Code::NotAuthorized,
        _ => Code::ServiceUnavailable,
    }
}

fn subscribe_code(reason: v5::SubscribeAckReason) -> v3::SubscribeReturnCode {
    use v3::SubscribeReturnCode as Code;
    match reason {
        v5::SubscribeAckReason::GrantedQos0 => Code::Success(v5::QoS::AtMostOnce),
        v5::SubscribeAckReason::GrantedQos1 => Code::Success(v5::QoS::AtLeastOnce),
        v5::SubscribeAckReason::GrantedQos2 => Code::Success(v5::QoS::ExactlyOnce),
        _ => Code::Failure,
    }
}
