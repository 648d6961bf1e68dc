//! Fields that these protos don't have: prost drops them, strictness refuses them.
//!
//! Walks the encoded message beside its descriptor, `Any`s included, and names what the
//! descriptor does not know by path and number. Reads nothing else of the values: the
//! decoders do.

use prost_reflect::{Kind, MessageDescriptor};

use super::{super::json, rejection};
use crate::snapshot::RejectedResource;

const ANY: &str = "google.protobuf.Any";

/// As deep as prost goes.
const DEPTH_MAX: usize = 100;

/// More than this many are not named: the first say enough.
const NAMED_MAX: usize = 20;

/// The fields of a resource that are unknown; `root` is its path.
pub(super) fn fields(full_name: &str, value: &[u8], root: &str) -> Vec<RejectedResource> {
    let Some(descriptor) = json::descriptor(full_name) else {
        return vec![rejection(root, format!("{full_name} has no descriptor"))];
    };
    let mut walk = Walk { path: root.to_owned(), rejected: Vec::new() };
    // What is not protobuf at all is the decoder's to refuse.
    let _ = walk.message(&descriptor, value, 0);
    walk.rejected
}

struct Walk {
    path: String,
    rejected: Vec<RejectedResource>,
}

/// The bytes are no message.
struct Malformed;

impl Walk {
    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        mut bytes: &[u8],
        depth: usize,
    ) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed);
        }
        // How many items of each list were seen.
        let mut counts: Vec<(u32, usize)> = Vec::new();
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).map_err(|_| Malformed)?;
            let value = skip(&mut bytes, (tag & 7) as u8)?;
            let Some(field) = descriptor.get_field(number) else {
                if self.rejected.len() < NAMED_MAX {
                    let reason = format!("unknown field number {number}");
                    self.rejected.push(rejection(&self.path, reason));
                }
                continue;
            };
            let Kind::Message(inner) = field.kind() else { continue };
            let Some(value) = value else { continue };
            let length = self.path.len();
            if field.name() != json::TYPED_CONFIG {
                self.path.push('.');
                self.path.push_str(field.name());
            }
            if field.is_list() && !field.is_map() {
                let at = match counts.iter_mut().find(|(known, _)| *known == number) {
                    Some((_, count)) => {
                        *count += 1;
                        *count
                    }
                    None => {
                        counts.push((number, 0));
                        0
                    }
                };
                self.path.push_str(&format!("[{at}]"));
            }
            let walked = if inner.full_name() == ANY {
                self.any(value, depth)
            } else {
                self.message(&inner, value, depth + 1)
            };
            self.path.truncate(length);
            walked?;
        }
        Ok(())
    }

    fn any(&mut self, mut bytes: &[u8], depth: usize) -> Result<(), Malformed> {
        let (mut type_url, mut value): (&[u8], &[u8]) = (&[], &[]);
        while !bytes.is_empty() {
            let tag = varint(&mut bytes)?;
            match (tag >> 3, skip(&mut bytes, (tag & 7) as u8)?) {
                (1, Some(found)) => type_url = found,
                (2, Some(found)) => value = found,
                _ => {}
            }
        }
        let name = std::str::from_utf8(type_url).unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        match json::descriptor(name) {
            Some(inner) => self.message(&inner, value, depth + 1),
            // The decoder refuses it by its type.
            None => Ok(()),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// Steps over a value; says what it is where its length is given.
fn skip<'a>(bytes: &mut &'a [u8], wire_type: u8) -> Result<Option<&'a [u8]>, Malformed> {
    let length = match wire_type {
        0 => {
            varint(bytes)?;
            return Ok(None);
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).map_err(|_| Malformed)?,
        5 => 4,
        // Groups: no proto of ours has one.
        _ => return Err(Malformed),
    };
    let (value, rest) = bytes.split_at_checked(length).ok_or(Malformed)?;
    *bytes = rest;
    Ok((wire_type == 2).then_some(value))
}
