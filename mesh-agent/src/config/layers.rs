//! One setting's value from the first layer that gives it, and every error on the way.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use serde_yaml_ng::Value;

use super::{ConfigError, ConfigErrors, Environment, Given, Origin, settings};

/// Flags, environment and file, and what was found wrong so far.
pub(super) struct Layers<'a> {
    given: &'a Given,
    environment: Environment<'a>,
    path: PathBuf,
    file: BTreeMap<String, Vec<String>>,
    errors: Vec<ConfigError>,
}

impl<'a> Layers<'a> {
    /// Reads the file that `config` names, if any.
    pub(super) fn read(given: &'a Given, environment: Environment<'a>) -> Self {
        let mut layers = Self {
            given,
            environment,
            path: PathBuf::new(),
            file: BTreeMap::new(),
            errors: Vec::new(),
        };
        if let Some((values, origin)) = layers.find("config")
            && let Some(path) = values.into_iter().next()
        {
            layers.path = path.into();
            layers.read_file(origin);
        }
        layers
    }

    fn read_file(&mut self, origin: Origin) {
        let path = self.path.display().to_string();
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                return self.fail("config", origin, format!("{path} can't be read: {error}"));
            }
        };
        let entries = match serde_yaml_ng::from_str::<Value>(&text) {
            Ok(Value::Mapping(entries)) => entries,
            Ok(Value::Null) => return,
            Ok(_) => {
                let reason = format!("{path} is not a mapping of settings");
                return self.fail("config", origin, reason);
            }
            Err(error) => {
                return self.fail("config", origin, format!("{path} is not YAML: {error}"));
            }
        };
        let here = Origin::File(self.path.clone());
        for (key, value) in entries {
            let Some(key) = key.as_str() else {
                let reason = format!("{path} has a key that is not a string");
                self.fail("config", origin.clone(), reason);
                continue;
            };
            match settings::find(key).filter(|setting| setting.key != "config") {
                None => self.fail(key, here.clone(), settings::unknown(key)),
                Some(setting) => match values(value, setting.list) {
                    Ok(values) => _ = self.file.insert(key.to_owned(), values),
                    Err(reason) => self.fail(key, here.clone(), reason),
                },
            }
        }
    }

    /// Notes that a setting is wrong.
    pub(super) fn fail(&mut self, key: &str, origin: Origin, reason: String) {
        self.errors.push(ConfigError { key: key.to_owned(), origin, reason });
    }

    /// As [`Layers::fail`], of what the setting's layer says; of no layer where none does.
    pub(super) fn fail_given(&mut self, key: &'static str, reason: impl Into<String>) {
        let origin = self.find(key).map_or(Origin::Default, |(_, origin)| origin);
        self.fail(key, origin, reason.into());
    }

    fn find(&self, key: &'static str) -> Option<(Vec<String>, Origin)> {
        if let Some(values) = self.given.0.get(key) {
            return Some((values.clone(), Origin::Flag));
        }
        if let Some(value) = (self.environment)(&settings::variable(key)) {
            let list = settings::find(key).is_some_and(|setting| setting.list);
            let values = if list {
                let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
                parts.map(str::to_owned).collect()
            } else {
                vec![value]
            };
            return Some((values, Origin::Environment));
        }
        self.file.get(key).map(|values| (values.clone(), Origin::File(self.path.clone())))
    }

    /// Whether any layer gives the setting.
    pub(super) fn is_given(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    fn find_or_default(&self, key: &'static str) -> Option<(Vec<String>, Origin)> {
        let default = || settings::find(key).and_then(|setting| setting.default);
        self.find(key).or_else(|| default().map(|value| (vec![value.to_owned()], Origin::Default)))
    }

    /// The text of a setting, unchecked.
    pub(super) fn peek(&self, key: &'static str) -> Option<String> {
        self.find_or_default(key).and_then(|(values, _)| values.into_iter().next())
    }

    /// A setting that must have a value.
    pub(super) fn one<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        match self.optional(key, parse)? {
            Some(value) => Some(value),
            None => {
                let (flag, variable) = (settings::flag(key), settings::variable(key));
                let reason = format!("is not set: use --{flag}, {variable} or `{key}` in the file");
                self.fail(key, Origin::Default, reason);
                None
            }
        }
    }

    /// A setting whose default has to be found out.
    pub(super) fn one_or<T>(
        &mut self,
        key: &'static str,
        default: impl FnOnce() -> io::Result<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        if let Some(value) = self.optional(key, &parse)? {
            return Some(value);
        }
        let value =
            default().map_err(|error| format!("no default: {error}")).and_then(|s| parse(&s));
        value.map_err(|reason| self.fail(key, Origin::Default, reason)).ok()
    }

    /// A setting that may be absent: `Some(None)`. `None` where it is wrong.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let Some((values, origin)) = self.find_or_default(key) else { return Some(None) };
        // Flags that are given twice: clap has refused that already.
        let Some(value) = values.last() else { return Some(None) };
        match parse(value) {
            Ok(value) => Some(Some(value)),
            Err(reason) => {
                self.fail(key, origin, reason);
                None
            }
        }
    }

    /// A setting that is a list; the first layer that gives it gives all of it.
    pub(super) fn many<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some((values, origin)) = self.find_or_default(key) else { return Some(Vec::new()) };
        let before = self.errors.len();
        let mut parsed = Vec::with_capacity(values.len());
        for value in &values {
            match parse(value) {
                Ok(value) => parsed.push(value),
                Err(reason) => self.fail(key, origin.clone(), reason),
            }
        }
        (self.errors.len() == before).then_some(parsed)
    }

    /// The settings, or everything that is wrong with them.
    pub(super) fn finish<T>(self, settings: Option<T>) -> Result<T, ConfigErrors> {
        match settings {
            Some(settings) if self.errors.is_empty() => Ok(settings),
            _ => Err(ConfigErrors(self.errors)),
        }
    }
}

fn values(value: Value, list: bool) -> Result<Vec<String>, String> {
    let scalar = |value: Value| match value {
        Value::String(s) => Ok(s),
        Value::Number(n) => Ok(n.to_string()),
        Value::Bool(b) => Ok(b.to_string()),
        Value::Null => Err("has no value".to_owned()),
        Value::Sequence(_) => Err("takes one value, not a list".to_owned()),
        Value::Mapping(_) | Value::Tagged(_) => Err("takes a value, not a mapping".to_owned()),
    };
    match value {
        Value::Sequence(items) if list => items.into_iter().map(scalar).collect(),
        value => scalar(value).map(|value| vec![value]),
    }
}
