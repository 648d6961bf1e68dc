//! YAML and JSON to encoded protobuf, by way of the descriptors `build.rs` compiled.
//!
//! Text comes in, resources as the wire would carry them go out; what they mean is
//! for `xds` to say. Unknown fields, and values that don't fit theirs, are refused
//! here, by path.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
};
use serde_json::{Map, Value};

use super::xds::{self, ResourceType};
use crate::snapshot::RejectedResource;

const TYPE_KEY: &str = "@type";

const ANY: &str = "google.protobuf.Any";

/// The field that carries an extension's `Any`: paths step over it, as people do.
pub(super) const TYPED_CONFIG: &str = "typed_config";

/// The lists whose items are named in paths, not counted.
const NAMED_LISTS: [&str; 1] = ["virtual_hosts"];

/// Loaded at the first resource, since that takes a while in a debug build, and kept
/// until [`forget_descriptors`].
static POOL: Mutex<Option<DescriptorPool>> = Mutex::new(None);

fn descriptors() -> DescriptorPool {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    pool.get_or_insert_with(|| {
        let descriptors: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.fds"));
        let mut pool = DescriptorPool::decode(descriptors).expect("build.rs encoded this set");
        // What both sets have is taken once.
        let apart: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/apart.fds"));
        pool.decode_file_descriptor_set(apart).expect("build.rs encoded this set, too");
        pool
    })
    .clone()
}

/// Gives back their memory, which is more than all else that an idle agent holds; the
/// next resource loads them again.
pub(super) fn forget_descriptors() {
    *POOL.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The descriptor of that message, if its proto is compiled in.
pub(super) fn descriptor(full_name: &str) -> Option<MessageDescriptor> {
    descriptors().get_message_by_name(full_name)
}

/// A resource's JSON, encoded.
pub(super) struct Transcoded {
    pub(super) bytes: Vec<u8>,
    /// What was refused, and left out of `bytes`.
    pub(super) rejected: Vec<RejectedResource>,
    /// The fields beside refused ones that did go into `bytes`.
    present: HashSet<String>,
}

impl Transcoded {
    /// Whether a decoder's rejection at `path` only says that something is missing
    /// which was refused, and left out, here: it need not be said twice.
    pub(super) fn explains(&self, path: &str) -> bool {
        self.rejected.iter().any(|refused| {
            let holder = holder(&refused.path);
            path == refused.path
                || path == holder
                || (self::holder(path) == holder && !self.present.contains(path))
        })
    }
}

/// The path of what holds the field or item at `path`.
fn holder(path: &str) -> &str {
    path.rfind(['.', '[']).and_then(|end| path.get(..end)).unwrap_or(path)
}

/// Encodes the JSON of one resource; `root` is the path of its rejections.
pub(super) fn transcode(
    kind: ResourceType,
    fields: Map<String, Value>,
    root: String,
) -> Result<Transcoded, Vec<RejectedResource>> {
    transcode_message(&kind.full_name(), fields, root)
}

/// As [`transcode`], for a message of any type.
pub(super) fn transcode_message(
    full_name: &str,
    mut fields: Map<String, Value>,
    root: String,
) -> Result<Transcoded, Vec<RejectedResource>> {
    let pool = descriptors();
    let Some(descriptor) = pool.get_message_by_name(full_name) else {
        let reason = format!("{full_name} has no descriptor");
        return Err(vec![xds::rejection(&root, reason)]);
    };
    fields.remove(TYPE_KEY);
    let mut walk = Walk { pool, path: root, rejected: Vec::new(), present: HashSet::new() };
    walk.message(&descriptor, &mut fields);
    match read(&descriptor, &Value::Object(fields)) {
        Ok(message) => {
            let Walk { rejected, present, .. } = walk;
            Ok(Transcoded { bytes: message.encode_to_vec(), rejected, present })
        }
        Err(reason) => {
            walk.refuse(reason);
            Err(walk.rejected)
        }
    }
}

fn read(descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, String> {
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options)
        .map_err(|error| error.to_string())
}

/// Goes through a resource's JSON beside its descriptor: refuses by path what won't
/// transcode and takes it out, and puts a placeholder where an `Any` has a type that
/// has no descriptor here.
struct Walk {
    pool: DescriptorPool,
    path: String,
    rejected: Vec<RejectedResource>,
    present: HashSet<String>,
}

impl Walk {
    fn refuse(&mut self, reason: impl Into<String>) {
        if self.rejected.len() < xds::REJECTIONS_MAX {
            self.rejected.push(xds::rejection(&self.path, reason));
        }
    }

    /// Runs `visit` with the path one step longer.
    fn step<T>(&mut self, step: &str, visit: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push_str(step);
        let visited = visit(self);
        self.path.truncate(length);
        visited
    }

    fn message(&mut self, descriptor: &MessageDescriptor, fields: &mut Map<String, Value>) {
        let rejections = self.rejected.len();
        let mut by_number: HashMap<u32, String> = HashMap::new();
        let mut by_oneof: HashMap<String, String> = HashMap::new();
        fields.retain(|key, value| {
            let field = descriptor
                .get_field_by_json_name(key)
                .or_else(|| descriptor.get_field_by_name(key));
            let Some(field) = field else {
                self.step(&format!(".{key}"), |walk| walk.refuse("unknown field"));
                return false;
            };
            if value.is_null() {
                return false;
            }
            let name = field.name();
            let step = if name == TYPED_CONFIG { String::new() } else { format!(".{name}") };
            self.step(&step, |walk| {
                if let Some(other) = by_number.insert(field.number(), key.clone()) {
                    walk.refuse(format!("is given twice, as {other} and as {key}"));
                    return false;
                }
                if let Some(oneof) = field.containing_oneof()
                    && let Some(other) = by_oneof.insert(oneof.name().to_owned(), key.clone())
                {
                    walk.refuse(format!("excludes {other}: only one of them may be set"));
                    return false;
                }
                walk.field(&field, key, value)
            })
        });
        if self.rejected.len() > rejections {
            let numbers = fields.keys().filter_map(|key| {
                let (number, _) = by_number.iter().find(|(_, given)| *given == key)?;
                descriptor.get_field(*number)
            });
            let paths = numbers.map(|field| format!("{}.{}", self.path, field.name()));
            self.present.extend(paths);
        }
    }

    /// Whether the field may stay.
    fn field(&mut self, field: &FieldDescriptor, key: &str, value: &mut Value) -> bool {
        if field.is_list() && !value.is_array() {
            // Envoy's parser takes one value for a list of one, and people's files have it.
            *value = Value::Array(vec![value.take()]);
        }
        if field.is_map() {
            if let (Kind::Message(entry), Value::Object(entries)) = (field.kind(), &mut *value)
                && let Kind::Message(message) = entry.map_entry_value_field().kind()
            {
                for (key, value) in entries {
                    self.step(&format!("[{key}]"), |walk| walk.value(&message, value));
                }
            }
        } else if let Kind::Message(message) = field.kind() {
            match value {
                Value::Array(items) if field.is_list() => {
                    let named = NAMED_LISTS.contains(&field.name());
                    for (i, item) in items.iter_mut().enumerate() {
                        let name = item.get("name").and_then(Value::as_str);
                        let step = match name {
                            Some(name) if named && !name.is_empty() => format!("[{name}]"),
                            _ => format!("[{i}]"),
                        };
                        self.step(&step, |walk| walk.value(&message, item));
                    }
                }
                _ => self.value(&message, value),
            }
        }
        // What was wrong further down is out by now; what is left is this field's own.
        let alone = Map::from_iter([(key.to_owned(), value.take())]);
        let alone = Value::Object(alone);
        let fits = read(field.parent_message(), &alone);
        if let Value::Object(mut alone) = alone {
            *value = alone.remove(key).unwrap_or_default();
        }
        match fits {
            Ok(_) => true,
            Err(reason) => {
                self.refuse(reason);
                false
            }
        }
    }

    fn value(&mut self, descriptor: &MessageDescriptor, value: &mut Value) {
        let Value::Object(fields) = value else { return };
        if descriptor.full_name() == ANY {
            self.any(fields);
        } else if descriptor.parent_file().package_name() != "google.protobuf" {
            self.message(descriptor, fields);
        }
    }

    fn any(&mut self, fields: &mut Map<String, Value>) {
        let Some(type_url) = fields.get(TYPE_KEY).and_then(Value::as_str) else {
            self.refuse("has no @type");
            *fields = placeholder("");
            return;
        };
        let type_name = type_url.rsplit('/').next().unwrap_or_default().to_owned();
        match self.pool.get_message_by_name(&type_name) {
            None => *fields = placeholder(&type_name),
            Some(descriptor) if descriptor.parent_file().package_name() == "google.protobuf" => {
                // Nothing honours one: the decoder refuses it by this name.
                *fields = placeholder(&type_name);
            }
            Some(descriptor) => {
                // A prefix that prost-reflect doesn't know would be refused by it.
                let type_url = format!("type.googleapis.com/{type_name}");
                fields.remove(TYPE_KEY);
                self.message(&descriptor, fields);
                fields.insert(TYPE_KEY.to_owned(), type_url.into());
            }
        }
    }
}

fn placeholder(type_name: &str) -> Map<String, Value> {
    Map::from_iter([
        (TYPE_KEY.to_owned(), format!("type.googleapis.com/{}", xds::PLACEHOLDER).into()),
        ("value".to_owned(), type_name.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::{ANY, descriptors, forget_descriptors};

    #[test]
    fn descriptors_that_were_forgotten_are_loaded_again() {
        let held = descriptors();
        forget_descriptors();
        for pool in [held, descriptors()] {
            assert!(pool.get_message_by_name(ANY).is_some());
        }
    }
}
