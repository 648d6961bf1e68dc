//! `docs/configuration.md` against the protos and the decoders: each table lists every field of
//! its message, and what it says of a field is what becomes of a resource that sets it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _, Value,
};

use super::super::{json, xds};

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");

/// One table.
struct Section<'a> {
    message: MessageDescriptor,
    /// The table that has the field, and the steps from its message to this one.
    at: Option<(&'a str, Vec<&'a str>)>,
    /// Fields, and what the document says of them.
    fields: Vec<(&'a str, &'a str)>,
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn sections() -> BTreeMap<&'static str, Section<'static>> {
    let mut all = BTreeMap::new();
    let parts: Vec<_> = DOCUMENT.split("\n### ").skip(1).collect();
    let titles: Vec<&str> = parts.iter().map(|part| part.lines().next().unwrap()).collect();
    for part in parts {
        let part = part.split("\n## ").next().unwrap();
        let title = part.lines().next().unwrap();
        let what = part.lines().find(|line| line.starts_with('`')).unwrap();
        let mut spans = code_spans(what);
        let name = spans.next().unwrap();
        let message = json::descriptor(name).unwrap_or_else(|| panic!("{title}: {name}"));
        let at = spans.next().map(|path| {
            let parents = titles.iter().filter(|title| {
                path.strip_prefix(**title).is_some_and(|rest| rest.starts_with('.'))
            });
            let parent = parents.max_by_key(|title| title.len());
            let parent = parent.unwrap_or_else(|| panic!("{title}: {path}"));
            (*parent, path[parent.len() + 1..].split('.').collect())
        });
        let rows = part.lines().filter(|line| line.starts_with("| `"));
        let fields = rows.flat_map(|row| {
            let (_, row) = row.split_once("| ").unwrap();
            let (names, said) = row.split_once(" | ").unwrap();
            code_spans(names).map(move |name| (name, said))
        });
        let section = Section { message, at, fields: fields.collect() };
        assert!(all.insert(title, section).is_none(), "{title} is there twice");
    }
    all
}

#[test]
fn tables_list_every_field() {
    let sections = sections();
    assert!(sections.len() > 100, "{}", sections.len());
    for (title, Section { message, fields, .. }) in &sections {
        let listed: BTreeSet<_> = fields.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed.len(), fields.len(), "{title} has a field twice");
        let there: BTreeSet<_> = message.fields().map(|field| field.name().to_owned()).collect();
        assert_eq!(listed, there, "{title}");
    }
}

#[test]
fn decoders_do_what_tables_say() {
    let sections = sections();
    let mut wrong = Vec::new();
    let (mut honoured, mut refused) = (0, 0);
    for (title, section) in &sections {
        for (name, said) in &section.fields {
            let field = section.message.get_field_by_name(name).unwrap();
            let mut message = DynamicMessage::new(section.message.clone());
            message.set_field(&field, sample(&field));
            let Some(reasons) = decode(&sections, title, message) else { continue };
            let named: Vec<_> =
                reasons.iter().filter(|reason| is_about(&reason.path, name)).collect();
            let unsupported = named.iter().any(|reason| reason.reason.contains("not supported"));
            match said.split([':', ' ']).next() {
                Some("refused") if named.is_empty() => {
                    wrong.push(format!("{title}.{name} is not refused: {reasons:?}"));
                }
                Some("refused") => refused += 1,
                Some("partly") => {}
                _ if unsupported => wrong.push(format!("{title}.{name} is refused: {named:?}")),
                _ => honoured += 1,
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(honoured > 400 && refused > 300, "{honoured} {refused}");
}

/// Whether a rejection's path ends in that field, or in an item of it.
fn is_about(path: &str, field: &str) -> bool {
    let whole = path.strip_suffix(']').and_then(|open| open.rsplit_once('['));
    let path = whole.map_or(path, |(whole, _)| whole);
    path.strip_suffix(field).is_some_and(|rest| rest.ends_with('.'))
}

/// Why a resource is refused that has nothing but this message; `None` if it is part of none.
fn decode(
    sections: &BTreeMap<&str, Section<'_>>,
    title: &str,
    mut message: DynamicMessage,
) -> Option<Vec<crate::snapshot::RejectedResource>> {
    let mut section = &sections[title];
    while let Some((parent, steps)) = &section.at {
        let parent = &sections[parent];
        let mut holders = vec![parent.message.clone()];
        for step in &steps[..steps.len() - 1] {
            let field = holders.last().unwrap().get_field_by_name(step).unwrap();
            holders.push(item_kind(&field).as_message().unwrap().clone());
        }
        for (holder, step) in holders.into_iter().zip(steps).rev() {
            let field = holder.get_field_by_name(step).unwrap_or_else(|| panic!("{title}: {step}"));
            let kind = item_kind(&field);
            let wanted = kind.as_message().unwrap();
            let name = message.descriptor().full_name().to_owned();
            if wanted.full_name() == "google.protobuf.Any" && name != "google.protobuf.Any" {
                let mut any = DynamicMessage::new(wanted.clone());
                let url = format!("type.googleapis.com/{name}");
                any.set_field_by_name("type_url", Value::String(url));
                any.set_field_by_name("value", Value::Bytes(encode(&message).into()));
                message = any;
            }
            let mut outer = DynamicMessage::new(holder);
            outer.set_field(&field, several(&field, &name, Value::Message(message)));
            message = outer;
        }
        section = parent;
    }
    let url = format!("type.googleapis.com/{}", message.descriptor().full_name());
    xds::ResourceType::of_url(&url)?;
    Some(xds::decode_any(&url, &encode(&message)).err().unwrap_or_default())
}

fn encode(message: &DynamicMessage) -> Vec<u8> {
    use prost::Message as _;
    message.encode_to_vec()
}

/// The kind of a field's items, or of a map's values.
fn item_kind(field: &FieldDescriptor) -> Kind {
    match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

/// One value as the field takes it.
fn several(field: &FieldDescriptor, key: &str, value: Value) -> Value {
    if field.is_map() {
        return Value::Map(HashMap::from([(MapKey::String(key.to_owned()), value)]));
    }
    if field.is_list() { Value::List(vec![value]) } else { value }
}

/// A value that is not the field's default.
fn sample(field: &FieldDescriptor) -> Value {
    let value = match item_kind(field) {
        Kind::Message(of) => {
            let mut message = DynamicMessage::new(of.clone());
            let wrapper =
                of.full_name().ends_with("Value") && of.package_name().ends_with("protobuf");
            if of.full_name() == "google.protobuf.Duration" {
                message.set_field_by_name("seconds", Value::I64(1));
            } else if let Some(inner) = of.get_field_by_name("value").filter(|_| wrapper) {
                message.set_field(&inner, sample(&inner));
            }
            Value::Message(message)
        }
        Kind::Enum(of) => {
            let other = of.values().map(|value| value.number()).find(|number| *number != 0);
            Value::EnumNumber(other.unwrap_or_default())
        }
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String("x".to_owned()),
        Kind::Bytes => Value::Bytes("x".into()),
        Kind::Double => Value::F64(1.0),
        Kind::Float => Value::F32(1.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(1),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(1),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(1),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(1),
    };
    several(field, "k", value)
}
