//! What follows the constant pool: fields, methods, and the attributes of all three.

use sha2::{Digest as _, Sha256};

use super::{ClassFile, ClassFileError, Field, Inner, Method, Pool, Reader, code};
use crate::digest::Digest;

/// Attributes that change nothing but what a debugger or a stack trace shows.
const DEBUG: [&str; 3] = ["SourceFile", "SourceDebugExtension", "MethodParameters"];

/// Takes a digest of what is said of a class beside its code.
#[derive(Default)]
struct Rest(Vec<[u8; 32]>);

impl Rest {
    /// Notes an attribute of `place`. Its bytes count as they are; those that are mere references are spelt out.
    fn note(
        &mut self,
        place: &str,
        name: &str,
        attribute: &mut Reader<'_>,
        pool: &Pool<'_>,
    ) -> Result<(), ClassFileError> {
        if DEBUG.contains(&name) {
            return Ok(());
        }
        let mut hash = Sha256::new();
        for part in [place, name] {
            hash.update(part);
            hash.update([0]);
        }
        match name {
            "Signature" => hash.update(pool.raw(attribute.u2()?)?),
            "Exceptions" => {
                for _ in 0..attribute.u2()? {
                    hash.update(pool.class(attribute.u2()?)?);
                    hash.update([0]);
                }
            }
            "EnclosingMethod" => {
                hash.update(pool.class(attribute.u2()?)?);
                if let method @ 1.. = attribute.u2()? {
                    let (name, desc) = pool.name_and_type(method)?;
                    hash.update(name + &desc);
                }
            }
            "RuntimeVisibleAnnotations" | "RuntimeInvisibleAnnotations" => {
                for _ in 0..attribute.u2()? {
                    annotation(&mut hash, attribute, pool, 0)?;
                }
            }
            _ => hash.update(attribute.rest()),
        }
        self.0.push(hash.finalize().into());
        Ok(())
    }

    /// The order of attributes does not matter.
    fn digest(mut self) -> Digest {
        self.0.sort_unstable();
        Digest::of(&self.0.concat())
    }
}

/// How deep annotations may nest: more is nobody's source, but somebody's attempt at our stack.
const MAX_DEPTH: u8 = 32;

fn annotation(
    hash: &mut Sha256,
    from: &mut Reader<'_>,
    pool: &Pool<'_>,
    depth: u8,
) -> Result<(), ClassFileError> {
    hash.update(pool.raw(from.u2()?)?);
    for _ in 0..from.u2()? {
        hash.update([0]);
        hash.update(pool.raw(from.u2()?)?);
        element(hash, from, pool, depth)?;
    }
    hash.update([1]);
    Ok(())
}

fn element(
    hash: &mut Sha256,
    from: &mut Reader<'_>,
    pool: &Pool<'_>,
    depth: u8,
) -> Result<(), ClassFileError> {
    if depth > MAX_DEPTH {
        return Err(from.error("annotations nest too deeply"));
    }
    let tag = from.u1()?;
    hash.update([tag]);
    match tag {
        b'e' => {
            hash.update(pool.raw(from.u2()?)?);
            hash.update([0]);
            hash.update(pool.raw(from.u2()?)?);
        }
        b'c' | b's' => hash.update(pool.raw(from.u2()?)?),
        b'@' => annotation(hash, from, pool, depth + 1)?,
        b'[' => {
            for _ in 0..from.u2()? {
                element(hash, from, pool, depth + 1)?;
            }
        }
        _ => hash.update(format!("{:?}", pool.constant(from.u2()?)?)),
    }
    hash.update([2]);
    Ok(())
}

/// Reads fields, methods and attributes into `class`.
pub(super) fn read<'a>(
    class: &mut ClassFile,
    from: &mut Reader<'a>,
    pool: &Pool<'a>,
) -> Result<(), ClassFileError> {
    let mut rest = Rest::default();
    for _ in 0..from.u2()? {
        let field = field(from, pool, &mut rest)?;
        class.fields.push(field);
    }
    let mut bodies = Vec::new();
    for _ in 0..from.u2()? {
        let (method, body) = method(from, pool, &mut rest)?;
        class.methods.push(method);
        bodies.push(body);
    }
    let mut bootstraps = code::Bootstraps::default();
    for _ in 0..from.u2()? {
        let name = pool.utf8(from.u2()?)?;
        let length = from.u4()?;
        let mut attribute = from.part(length)?;
        if name == "BootstrapMethods" {
            bootstraps = code::Bootstraps::read(&mut attribute)?;
        } else if !of_class(class, &name, &mut attribute, pool)? {
            rest.note("", &name, &mut attribute, pool)?;
        }
    }
    // Bodies refer to bootstrap methods, which come last.
    for (method, body) in class.methods.iter_mut().zip(bodies) {
        if let Some(body) = body {
            method.body = Some(code::digest(body, pool, &bootstraps, &mut class.constants)?);
        }
    }
    class.rest = rest.digest();
    Ok(())
}

/// The attributes of a class that have a place in [`ClassFile`]. Tells whether this is one.
fn of_class(
    class: &mut ClassFile,
    name: &str,
    from: &mut Reader<'_>,
    pool: &Pool<'_>,
) -> Result<bool, ClassFileError> {
    match name {
        "InnerClasses" => {
            for _ in 0..from.u2()? {
                let name = pool.class(from.u2()?)?;
                let outer = pool.class_or_none(from.u2()?)?;
                let _simple = from.u2()?;
                class.inner.push(Inner { name, outer, access: from.u2()? });
            }
            class.inner.sort_unstable();
        }
        "NestHost" => class.nest_host = Some(pool.class(from.u2()?)?),
        "NestMembers" => class.nest_members = names(from, pool)?,
        "PermittedSubclasses" => class.permitted = Some(names(from, pool)?),
        "Record" => class.record = Some(components(from, pool)?),
        _ => return Ok(false),
    }
    Ok(true)
}

fn names(from: &mut Reader<'_>, pool: &Pool<'_>) -> Result<Vec<String>, ClassFileError> {
    let mut names = (0..from.u2()?).map(|_| pool.class(from.u2()?)).collect::<Result<Vec<_>, _>>()?;
    names.sort_unstable();
    Ok(names)
}

fn components(from: &mut Reader<'_>, pool: &Pool<'_>) -> Result<Vec<String>, ClassFileError> {
    let mut components = Vec::new();
    for _ in 0..from.u2()? {
        let mut text = format!("{} {}", pool.utf8(from.u2()?)?, pool.utf8(from.u2()?)?);
        for _ in 0..from.u2()? {
            let name = pool.utf8(from.u2()?)?;
            let length = from.u4()?;
            let mut attribute = from.part(length)?;
            if name == "Signature" {
                text = format!("{text} {}", pool.utf8(attribute.u2()?)?);
            }
        }
        components.push(text);
    }
    Ok(components)
}

fn field(from: &mut Reader<'_>, pool: &Pool<'_>, rest: &mut Rest) -> Result<Field, ClassFileError> {
    let access = from.u2()?;
    let mut field =
        Field { access, name: pool.utf8(from.u2()?)?, desc: pool.utf8(from.u2()?)?, constant: None };
    for _ in 0..from.u2()? {
        let name = pool.utf8(from.u2()?)?;
        let length = from.u4()?;
        let mut attribute = from.part(length)?;
        if name == "ConstantValue" {
            field.constant = Some(pool.constant(attribute.u2()?)?);
        } else {
            rest.note(&format!("{} {}", field.name, field.desc), &name, &mut attribute, pool)?;
        }
    }
    Ok(field)
}

fn method<'a>(
    from: &mut Reader<'a>,
    pool: &Pool<'a>,
    rest: &mut Rest,
) -> Result<(Method, Option<Reader<'a>>), ClassFileError> {
    let access = from.u2()?;
    let method = Method { access, name: pool.utf8(from.u2()?)?, desc: pool.utf8(from.u2()?)?, body: None };
    let mut body = None;
    for _ in 0..from.u2()? {
        let name = pool.utf8(from.u2()?)?;
        let length = from.u4()?;
        let mut attribute = from.part(length)?;
        if name == "Code" {
            body = Some(attribute);
        } else {
            rest.note(&format!("{}{}", method.name, method.desc), &name, &mut attribute, pool)?;
        }
    }
    Ok((method, body))
}
