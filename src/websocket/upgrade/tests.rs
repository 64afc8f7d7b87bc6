//! Requests as a browser, a client and somebody else would send them.

use super::*;

/// RFC 6455 §1.2, with MQTT's subprotocol.
const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://example.com\r\n\
    Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Version: 13\r\n\r\n";

fn terms(origins: &[&str]) -> Terms {
    Terms { path: "/mqtt".to_owned(), origins: origins.iter().map(|&origin| origin.to_owned()).collect() }
}

#[test]
fn the_rfcs_own_request_has_the_rfcs_own_answer_mqtt_6_0_0_4() {
    let answer = accept(GOOD.as_bytes(), &terms(&[])).expect("it is right");
    assert_eq!(
        answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
}

#[test]
fn what_clients_send_otherwise_is_taken_too() {
    for (from, to) in [
        ("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        ("Upgrade: websocket", "upgrade: WebSocket"),
        ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: mqttv3.1, mqtt"),
        ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: mqttv3.1\r\nSec-WebSocket-Protocol: mqtt"),
        ("GET /mqtt ", "GET /mqtt?token=1 "),
        ("Origin: http://example.com\r\n", ""),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"),
        ("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let request = GOOD.replacen(from, to, 1);
        assert_ne!(request, GOOD);
        let answer = accept(request.as_bytes(), &terms(&[])).unwrap_or_else(|why| panic!("{to}: {why}"));
        assert!(!answer.contains("Extensions"), "no extension is agreed on");
    }
}

#[test]
fn what_is_wrong_with_a_request_is_said_with_its_status() {
    let many = format!("\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX));
    for (from, to, refusal, status) in [
        ("GET /mqtt HTTP/1.1", "POST /mqtt HTTP/1.1", Refusal::NotGet, "405 "),
        ("GET /mqtt HTTP/1.1", "GET /mqtt HTTP/1.0", Refusal::NotHttp, "400 "),
        ("GET /mqtt HTTP/1.1", "GET /mqtt", Refusal::NotHttp, "400 "),
        ("GET /mqtt HTTP/1.1", "\u{1}GET /mqtt HTTP/1.1", Refusal::NotHttp, "400 "),
        ("/mqtt", "/", Refusal::NoSuchPath, "404 "),
        ("/mqtt", "/mqtt/", Refusal::NoSuchPath, "404 "),
        ("/mqtt", "/MQTT", Refusal::NoSuchPath, "404 "),
        ("Host: server.example.com\r\n", "", Refusal::NotHttp, "400 "),
        ("Host:", "Host: another\r\nHost:", Refusal::NotHttp, "400 "),
        ("Upgrade: websocket\r\n", "", Refusal::NotWebSocket, "426 "),
        ("Upgrade: websocket", "Upgrade: h2c", Refusal::NotWebSocket, "426 "),
        ("Connection: Upgrade\r\n", "Connection: close\r\n", Refusal::NotWebSocket, "426 "),
        ("Sec-WebSocket-Version: 13\r\n", "", Refusal::Version, "426 "),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8", Refusal::Version, "426 "),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", Refusal::NotWebSocket, "426 "),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", Refusal::NotWebSocket, "426 "),
        ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ=!", Refusal::NotWebSocket, "426 "),
        ("Sec-WebSocket-Protocol: mqtt\r\n", "", Refusal::NotMqtt, "400 "),
        ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: MQTT", Refusal::NotMqtt, "400 "),
        ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: mqttv3.1", Refusal::NotMqtt, "400 "),
        ("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n", Refusal::NotHttp, "400 "),
        ("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::NotHttp, "400 "),
        ("\r\n\r\n", "\r\n folded\r\n\r\n", Refusal::NotHttp, "400 "),
        ("\r\n\r\n", &format!("{many}\r\n"), Refusal::TooLarge, "431 "),
    ] {
        let request = GOOD.replacen(from, to, 1);
        assert_ne!(request, GOOD);
        assert_eq!(accept(request.as_bytes(), &terms(&[])), Err(refusal), "{from} -> {to}");
        let answer = refusal.answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains("\r\nConnection: close\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{answer}");
    }
    assert!(Refusal::Version.answer().contains("\r\nSec-WebSocket-Version: 13\r\n"), "RFC 6455 §4.4");
    assert!(Refusal::NotGet.answer().contains("\r\nAllow: GET\r\n"));
}

#[test]
fn a_list_of_origins_keeps_other_pages_out_and_programs_in() {
    let portal = terms(&["https://portal.bank.example", "https://EXAMPLE.com"]);
    let of = |origin: &str| {
        let request = GOOD.replacen("Origin: http://example.com\r\n", origin, 1);
        accept(request.as_bytes(), &portal).err()
    };
    assert_eq!(of("Origin: https://portal.bank.example\r\n"), None);
    assert_eq!(of("origin: https://example.com\r\n"), None);
    assert_eq!(of(""), None, "no browser");
    assert_eq!(of("Origin: http://portal.bank.example\r\n"), Some(Refusal::Origin));
    assert_eq!(of("Origin: https://portal.bank.example.evil.example\r\n"), Some(Refusal::Origin));
    assert_eq!(of("Origin: null\r\n"), Some(Refusal::Origin));
    assert_eq!(of("Origin:\r\n"), Some(Refusal::Origin));
    let two = "Origin: https://portal.bank.example\r\nOrigin: https://evil.example\r\n";
    assert_eq!(of(two), Some(Refusal::Origin));
}
