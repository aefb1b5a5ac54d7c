//! Takes the files of Swagger UI that /documentation serves out of the crate that holds its release: as gzip, which is
//! the archive's own compression with another frame around it. So nothing is unpacked, and nothing fetched.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED as ARCHIVE;

/// By their places in the release's folder.
const FILES: [&str; 5] = [
    "dist/swagger-ui-bundle.js",
    "dist/swagger-ui.css",
    "dist/favicon-32x32.png",
    "LICENSE",
    "NOTICE",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    #[expect(
        clippy::disallowed_methods,
        reason = "it is the environment of the build, not the gateway's"
    )]
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("there is no OUT_DIR")?);
    let entries = entries().ok_or("the archive cannot be read")?;
    for file in FILES {
        let is_it = |entry: &&Entry| {
            entry
                .name
                .split_once('/')
                .is_some_and(|(_, name)| name == file)
        };
        let entry = entries
            .iter()
            .find(is_it)
            .ok_or_else(|| format!("the archive has no {file}"))?;
        let gzip = entry
            .gzip()
            .ok_or_else(|| format!("{file} cannot be read"))?;
        let name = Path::new(file).file_name().ok_or("a file has a name")?;
        let name = format!("{}.gz", name.to_string_lossy());
        fs::write(folder.join(name), gzip)?;
    }
    Ok(())
}

/// A file of the archive (PKWARE's APPNOTE.TXT, section 4.3.12).
struct Entry {
    name: String,
    method: usize,
    checksum: u32,
    packed: usize,
    size: u32,
    /// Of its local header.
    at: usize,
}

const STORED: usize = 0;
const DEFLATED: usize = 8;

fn entries() -> Option<Vec<Entry>> {
    const END: &[u8] = b"PK\x05\x06";
    const CENTRAL: &[u8] = b"PK\x01\x02";
    let end = ARCHIVE.windows(END.len()).rposition(|four| four == END)?;
    let (count, mut at) = (two(end + 10)?, four(end + 16)? as usize);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        if ARCHIVE.get(at..at + CENTRAL.len())? != CENTRAL {
            return None;
        }
        let (name, extra, comment) = (two(at + 28)?, two(at + 30)?, two(at + 32)?);
        entries.push(Entry {
            name: String::from_utf8(ARCHIVE.get(at + 46..at + 46 + name)?.to_vec()).ok()?,
            method: two(at + 10)?,
            checksum: four(at + 16)?,
            packed: four(at + 20)? as usize,
            size: four(at + 24)?,
            at: four(at + 42)? as usize,
        });
        at += 46 + name + extra + comment;
    }
    Some(entries)
}

impl Entry {
    /// As RFC 1952 has it.
    fn gzip(&self) -> Option<Vec<u8>> {
        let begin = self.at + 30 + two(self.at + 26)? + two(self.at + 28)?;
        let content = ARCHIVE.get(begin..begin + self.packed)?;
        let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
        match self.method {
            DEFLATED => {}
            // One block that is not compressed, and the last one (RFC 1951, section 3.2.4).
            STORED => {
                let length = u16::try_from(content.len()).ok()?;
                gzip.push(1);
                gzip.extend(length.to_le_bytes());
                gzip.extend((!length).to_le_bytes());
            }
            _ => return None,
        }
        gzip.extend(content);
        gzip.extend(self.checksum.to_le_bytes());
        gzip.extend(self.size.to_le_bytes());
        Some(gzip)
    }
}

fn two(at: usize) -> Option<usize> {
    let bytes = ARCHIVE.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_le_bytes(bytes).into())
}

fn four(at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        ARCHIVE.get(at..at + 4)?.try_into().ok()?,
    ))
}
