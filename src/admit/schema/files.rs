//! The files that schemas stand in: those that are compiled in, as `builtin:NAME`, and those beside the configuration.
//!
//! A schema refers to others in its own folder and below, and to nothing else: nothing is fetched.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{Retrieve, Uri};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::dialect::fault;
use crate::admit::json::{self, Bounds};
use crate::config;

/// A file that the configuration names.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "String")]
pub struct FileName {
    name: String,
    /// Where the configuration stands; `None`: it is compiled in.
    folder: Option<Arc<Path>>,
}

/// The schemas of one folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shelf(Place);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    BuiltIn,
    Folder(PathBuf),
}

macro_rules! built_in {
    ($($name:literal),+ $(,)?) => {
        /// The schemas of the platform's documented validators.
        const BUILT_IN: &[(&str, &str)] = &[
            $(($name, include_str!(concat!("../../../conf/schemas/", $name)))),+
        ];
    };
}

built_in![
    "common.json",
    "event-create.json",
    "event-update.json",
    "listing-create.json",
    "listing-purchase.json",
    "pagination.json",
    "ticket-purchase.json",
    "ticket-validate.json",
    "venue-create.json",
    "venue-update.json",
];

const PREFIX: &str = "builtin:";

/// Of the addresses that schemas have in here.
pub const SCHEME: &str = "schema:///";

/// More stands in no file that people write.
const BOUNDS: Bounds = Bounds {
    depth: 100,
    values: 200_000,
};

// === impl FileName ===

impl From<String> for FileName {
    fn from(name: String) -> Self {
        Self { name, folder: None }
    }
}

/// The name, and what its file holds: another content is another configuration.
impl Serialize for FileName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.path() {
            Some(path) => config::with_file(&path, to),
            None => to.serialize_str(&self.name),
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl FileName {
    /// Names are relative to this folder.
    pub fn stand_in(&mut self, folder: Option<Arc<Path>>) {
        self.folder = folder;
    }

    fn path(&self) -> Option<PathBuf> {
        match self.name.starts_with(PREFIX) {
            true => None,
            false => Some(self.folder.as_ref()?.join(&self.name)),
        }
    }

    /// Its shelf, its name there, and what it holds.
    ///
    /// # Errors
    /// When there is no such file, or it holds neither JSON nor YAML.
    pub fn read(&self) -> Result<(Shelf, String, Value), String> {
        let (shelf, name) = self.shelf().map_err(|fault| format!("{self}: {fault}"))?;
        let value = shelf.read(&name)?;
        Ok((shelf, name, value))
    }

    fn shelf(&self) -> Result<(Shelf, String), String> {
        if let Some(name) = self.name.strip_prefix(PREFIX) {
            return Ok((Shelf::built_in(), name.to_owned()));
        }
        let Some(path) = self.path() else {
            return Err(format!(
                "nothing stands beside the built-in configuration: name `{PREFIX}…`, or begin with --conf"
            ));
        };
        let name = path.file_name().and_then(|name| name.to_str());
        match (name, path.parent()) {
            (Some(name), Some(folder)) => {
                Ok((Shelf(Place::Folder(folder.to_owned())), name.to_owned()))
            }
            _ => Err("is no name of a file".into()),
        }
    }
}

// === impl Shelf ===

impl Shelf {
    pub fn built_in() -> Self {
        Self(Place::BuiltIn)
    }

    /// The address of a file, for `$ref`.
    pub fn uri(name: &str) -> String {
        format!("{SCHEME}{}", Self::encoded(name))
    }

    /// The file that a schema in `file` names, and the rest of what it says: a pointer, or an anchor.
    pub fn follow(file: &str, to: &str) -> Option<(String, String)> {
        let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let (name, rest) = to.split_once('#').unwrap_or((to, ""));
        let rest = decoded(rest)?;
        if name.is_empty() {
            return Some((file.to_owned(), rest));
        }
        if let Some(name) = name.strip_prefix(SCHEME) {
            return Some((decoded(name)?, rest));
        }
        if name.contains(':') {
            return None;
        }
        // As for addresses (RFC 3986, section 5.2.4).
        let folder = match name.starts_with('/') {
            true => "",
            false => file.rsplit_once('/').map_or("", |(folder, _)| folder),
        };
        let mut segments: Vec<&str> = folder.split('/').filter(|s| !s.is_empty()).collect();
        for segment in name.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()), // there is nothing above
                segment => segments.push(segment),
            }
        }
        Some((decoded(&segments.join("/"))?, rest))
    }

    /// As a part of an address.
    pub fn encoded(text: &str) -> impl fmt::Display {
        const NOT_PLAIN: &AsciiSet = &CONTROLS
            .add(b' ')
            .add(b'"')
            .add(b'#')
            .add(b'%')
            .add(b'<')
            .add(b'>')
            .add(b'?')
            .add(b'[')
            .add(b'\\')
            .add(b']')
            .add(b'^')
            .add(b'`')
            .add(b'{')
            .add(b'|')
            .add(b'}');
        utf8_percent_encode(text, NOT_PLAIN)
    }

    /// # Errors
    /// When there is no such file, or it holds neither JSON nor YAML.
    pub fn read(&self, name: &str) -> Result<Value, String> {
        let mut segments = name.split('/');
        if segments.any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(format!("`{name}` is no file of this folder"));
        }
        let text = match &self.0 {
            Place::BuiltIn => {
                let known = BUILT_IN.iter().find(|(known, _)| *known == name);
                let names = || BUILT_IN.iter().map(|(known, _)| *known).collect::<Vec<_>>();
                let (_, text) = known.ok_or_else(|| {
                    format!("there is no {PREFIX}{name}, only {}", names().join(", "))
                })?;
                (*text).to_owned()
            }
            Place::Folder(folder) => {
                let text = config::contents(folder.join(name))
                    .map_err(|e| format!("{name}: cannot be read: {e}"))?;
                String::from_utf8(text).map_err(|_| format!("{name}: is not UTF-8"))?
            }
        };
        parse(name, &text).map_err(|fault| format!("{name}: {fault}"))
    }
}

fn parse(name: &str, text: &str) -> Result<Value, String> {
    if name.ends_with(".yaml") || name.ends_with(".yml") {
        config::check_yaml(text)?;
        return serde_yaml::from_str(text).map_err(|e| format!("is not YAML: {e}"));
    }
    match json::read(text.as_bytes(), BOUNDS) {
        Ok(value) => Ok(value),
        // The library says where, but not about what it would take.
        Err(json::NoDocument(why)) => Err(match serde_json::from_str::<Value>(text) {
            Err(e) => format!("is not JSON: {e}"),
            Ok(_) => why
                .replace("The body", "The file")
                .replace("the body", "the file"),
        }),
    }
}

impl Retrieve for Shelf {
    fn retrieve(
        &self,
        uri: &Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        // Dot segments are resolved already, and lead no higher than to the folder.
        let name = uri.as_str().strip_prefix(SCHEME);
        let name = name.and_then(|name| percent_decode_str(name).decode_utf8().ok());
        match name {
            Some(name) => {
                let value = self.read(&name)?;
                // The library looks at the first schema only. OpenAPI's are looked at where they stand.
                if value.get("openapi").is_none()
                    && let Err(e) = jsonschema::draft202012::meta::validate(&value)
                {
                    return Err(format!("{name}#{}: {}", e.instance_path(), fault(&e)).into());
                }
                Ok(value)
            }
            None => Err(format!("{uri} is no file beside the schema: nothing is fetched").into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::dialect;
    use super::*;

    #[test]
    fn every_built_in_schema_is_listed_and_compiles() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/schemas");
        let mut there: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        there.sort();
        let listed: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, there);
        for name in listed {
            let shelf = Shelf::built_in();
            let schema = shelf.read(name).unwrap();
            let built = dialect::options(&shelf, name).build(&schema);
            assert!(built.is_ok(), "{name}: {:?}", built.err());
        }
    }

    #[test]
    fn a_schema_refers_to_its_own_folder_only() {
        let shelf = Shelf::built_in();
        for (to, is_known) in [
            ("common.json#/$defs/price", true),
            ("./x/../common.json#/$defs/price", true),
            ("../../common.json#/$defs/price", true), // there is nothing above
            ("common.json#/$defs/nothing", false),
            ("..%2Fcommon.json", false),
            ("nothing.json", false),
            ("https://example.com/common.json", false),
            ("file:///etc/passwd", false),
        ] {
            let schema = json!({"$ref": to});
            let built = dialect::options(&shelf, "x.json").build(&schema);
            assert_eq!(built.is_ok(), is_known, "{to}");
        }
    }
}
