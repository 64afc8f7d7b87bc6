//! WebSocket (RFC 6455) as a carrier of MQTT: the request that opens it and the frames, as bytes in and a verdict out.
//!
//! MQTT 5, section 6 (3.1.1 the same): the subprotocol is `mqtt` [MQTT-6.0.0-3] and is named in the answer
//! [MQTT-6.0.0-4]; packets travel in binary frames, anything else ends the connection [MQTT-6.0.0-1]; a packet may span
//! frames and frames may share one [MQTT-6.0.0-2]. So what is in the frames is taken as one stream of bytes, and handed
//! on as it comes: no frame and no message is ever gathered, and how long one is costs nothing.

pub mod frames;
pub mod upgrade;
