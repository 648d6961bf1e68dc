//! Messages of a unary gRPC call: one each way.
//!
//! Spec: gRPC over HTTP/2, `Length-Prefixed-Message`.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

/// A flag byte and a length.
pub const PREFIX_BYTES: usize = 5;

/// Why bytes are no answer.
#[derive(Debug, thiserror::Error)]
pub enum GrpcMessageError {
    #[error("the gRPC answer has no message")]
    Missing,
    #[error("the gRPC answer is compressed, which was not asked for")]
    Compressed,
    #[error("the gRPC answer has not the length that it says, or is several messages")]
    Length,
    #[error("the gRPC answer is not the message that it should be")]
    Message(#[source] prost::DecodeError),
}

/// A message with its prefix.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    // Larger messages are refused by who encodes them.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put(message.encode_to_vec().as_slice());
    out.freeze()
}

/// The only message of an answer.
///
/// # Errors
/// [`GrpcMessageError`]
pub fn decode<M: Message + Default>(mut answer: &[u8]) -> Result<M, GrpcMessageError> {
    let Some((prefix, rest)) = answer.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(GrpcMessageError::Missing);
    };
    answer = rest;
    let [flag, length @ ..] = *prefix;
    if flag != 0 {
        return Err(GrpcMessageError::Compressed);
    }
    if usize::try_from(u32::from_be_bytes(length)) != Ok(answer.len()) {
        return Err(GrpcMessageError::Length);
    }
    M::decode(answer).map_err(GrpcMessageError::Message)
}

/// Whether lists of these many bytes for each item are more than an answer that filters wait for
/// may name: what is changed by it has limits too.
pub(super) fn is_too_much(items: impl IntoIterator<Item = usize>) -> bool {
    const ITEMS_MAX: usize = 1024;
    const BYTES_MAX: usize = 64 << 10;
    let sum = |(items, bytes): (usize, usize), item: usize| (items + 1, bytes.saturating_add(item));
    let (items, bytes) = items.into_iter().fold((0, 0), sum);
    items > ITEMS_MAX || bytes > BYTES_MAX
}

/// Counts the messages of a stream as its bytes go by.
///
/// A message counts, as with Envoy, once its first byte was seen.
#[derive(Debug, Default)]
pub struct MessageCounter {
    /// How many bytes of the prefix in hand were seen, and what its length is so far.
    prefix: usize,
    length: u32,
    /// Of the message in hand.
    left: usize,
}

impl MessageCounter {
    /// How many messages begin in these bytes.
    pub fn count(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        loop {
            let skipped = self.left.min(data.len());
            self.left -= skipped;
            data = &data[skipped..];
            let Some((byte, rest)) = data.split_first() else { return begun };
            data = rest;
            match self.prefix {
                0 => (begun, self.length) = (begun + 1, 0),
                _ => self.length = self.length << 8 | u32::from(*byte),
            }
            self.prefix += 1;
            if self.prefix == PREFIX_BYTES {
                self.prefix = 0;
                self.left = usize::try_from(self.length).unwrap_or(usize::MAX);
            }
        }
    }
}

/// Reads a peer's bytes as each answer that filters wait for, and says what it read again. For
/// fuzzing.
#[doc(hidden)]
pub fn fuzz_answer(data: &[u8]) {
    use envoy_types::pb::envoy::service::{
        auth::v3::CheckResponse, ratelimit::v3::RateLimitResponse,
    };
    if let Ok(response) = decode::<CheckResponse>(data) {
        let _: Result<_, _> = super::ext_authz::answer(response.clone());
        assert_eq!(decode::<CheckResponse>(&encode(&response)).ok(), Some(response));
    }
    if let Ok(response) = decode::<RateLimitResponse>(data) {
        let _: Result<_, _> = super::rate_limit::answer(response);
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::StringValue;

    use super::*;

    #[test]
    fn a_message_comes_back_and_nothing_else_does() {
        let message = StringValue { value: "x".repeat(300) };
        let bytes = encode(&message);
        assert_eq!(decode::<StringValue>(&bytes).unwrap(), message);
        let check = |bytes: &[u8]| decode::<StringValue>(bytes).unwrap_err().to_string();
        assert!(check(&bytes[..4]).contains("no message"));
        assert!(check(&bytes[..bytes.len() - 1]).contains("length"));
        assert!(check(&[&bytes[..], &bytes[..]].concat()).contains("length"));
        let mut compressed = bytes.to_vec();
        compressed[0] = 1;
        assert!(check(&compressed).contains("compressed"));
        assert!(check(&[0, 0, 0, 0, 1, 0xff]).contains("not the message"));
    }

    #[test]
    fn messages_are_counted_however_they_come() {
        let message = StringValue { value: "x".repeat(300) };
        let mut all = Vec::new();
        for _ in 0..3 {
            all.extend(encode(&message));
            // One without a byte of its own.
            all.extend([0; PREFIX_BYTES]);
        }
        for size in [1, 2, 5, 7, 305, all.len()] {
            let mut counter = MessageCounter::default();
            let counted: u64 = all.chunks(size).map(|chunk| counter.count(chunk)).sum();
            assert_eq!(counted, 6, "{size}");
            assert_eq!(counter.count(&[1]), 1);
            assert_eq!(counter.count(&[0xff; 4]), 0);
            assert_eq!(counter.count(&[0; 4096]), 0, "within a large one");
        }
        assert_eq!(MessageCounter::default().count(&[]), 0);
    }
}
