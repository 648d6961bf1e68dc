//! YAML and JSON text to plain values: strict about duplicate keys, bounded in size.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::xds;
use crate::snapshot::RejectedResource;

/// How many scalars, lists and mappings one file may hold once YAML's aliases are
/// written out: a few kilobytes of nested aliases would otherwise fill the memory.
const VALUES_MAX: usize = 1 << 20;

/// How deep brackets and braces may nest in YAML. The parser's own limit, which is
/// lower, comes after its scanner, which takes the square of this in time.
const NESTING_MAX: usize = 1000;

/// Documents in one YAML file; the parser takes the square of it in time.
const DOCUMENTS_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// The documents of a file. Empty ones are left out.
///
/// # Errors
/// What is wrong and where: the path is `file:line:column`.
pub(super) fn documents(
    file: &str,
    format: Format,
    text: &[u8],
) -> Result<Vec<Value>, RejectedResource> {
    let at = |line: usize, column: usize, reason: String| {
        xds::rejection(&format!("{file}:{line}:{column}"), reason)
    };
    let text = std::str::from_utf8(text).map_err(|error| {
        let valid = text.get(..error.valid_up_to()).unwrap_or_default();
        let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
        let column = valid.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        at(line, column, "is not UTF-8".to_owned())
    })?;
    let left = Cell::new(VALUES_MAX);
    let documents: Vec<Value> = match format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_str(text);
            let value = Bounded(&left)
                .deserialize(&mut json)
                .and_then(|value| json.end().map(|()| value))
                .map_err(|error| at(error.line(), error.column(), error.to_string()))?;
            vec![value]
        }
        Format::Yaml => {
            affordable(text).map_err(|(line, column, reason)| at(line, column, reason))?;
            serde_yaml_ng::Deserializer::from_str(text)
                .map(|document| Bounded(&left).deserialize(document))
                .collect::<Result<_, _>>()
                .map_err(|error| {
                    let place = error.location().map(|place| (place.line(), place.column()));
                    let (line, column) = place.unwrap_or((1, 1));
                    at(line, column, error.to_string())
                })?
        }
    };
    let documents: Vec<_> = documents.into_iter().filter(|value| !value.is_null()).collect();
    if documents.is_empty() {
        // What an in-place write looks like in the middle: not a wish for no resources.
        return Err(at(1, 1, "is empty; say `resources: []` if that is meant".to_owned()));
    }
    Ok(documents)
}

/// Refuses YAML that its parser would take hours for: line, column and why. Quotes and
/// comments are not told apart; nobody has so many unbalanced brackets in them.
fn affordable(text: &str) -> Result<(), (usize, usize, String)> {
    let (mut depth, mut documents) = (0_usize, 0_usize);
    for (i, line) in text.lines().enumerate() {
        if line.starts_with("---") {
            documents += 1;
            if documents > DOCUMENTS_MAX {
                return Err((i + 1, 1, format!("holds more than {DOCUMENTS_MAX} documents")));
            }
        }
        for (j, byte) in line.bytes().enumerate() {
            match byte {
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > NESTING_MAX {
                return Err((i + 1, j + 1, format!("is nested more than {NESTING_MAX} deep")));
            }
        }
    }
    Ok(())
}

/// Deserializes any value, as long as some of the budget is left.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            None => return Err(D::Error::custom(format!("holds more than {VALUES_MAX} values"))),
        }
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping, a list, a string, a number, a boolean or null")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom("is not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
