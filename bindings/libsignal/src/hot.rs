//! The calls that are made for each message. They take their arguments themselves: what the macros write for a function with
//! arguments keeps account of borrows that are never made here, which costs as much as encrypting a text.

use napi::bindgen_prelude::{BufferSlice, JsObjectValue, Object};
use napi::{Env, Error, Result, Status};
use napi_derive::napi;

use crate::out::Out;
use crate::{group, session};

/// What is done with a record and a message or text, and whether there was room for the answer.
type Call = fn(&mut Out<'_>, &[u8], &[u8]) -> Result<bool>;

/// The calls, by the names that JavaScript knows them by.
const CALLS: [(&str, Call); 4] = [
    ("encrypt", session::encrypt),
    ("decrypt", session::decrypt),
    ("groupEncrypt", group::group_encrypt),
    ("groupDecrypt", group::group_decrypt),
];

/// Adds the calls to what the module exports. What panics in them becomes an error, as elsewhere: napi sees to that for closures.
///
/// # Errors
/// What Node says.
#[napi(module_exports)]
pub fn export_calls(mut exports: Object<'_>, env: Env) -> Result<()> {
    for (name, call) in CALLS {
        export(&mut exports, env, name, call)?;
    }
    #[cfg(debug_assertions)]
    export(&mut exports, env, "panicInCall", crate::faults::panic_in_call)?;
    Ok(())
}

fn export(exports: &mut Object<'_>, env: Env, name: &str, call: Call) -> Result<()> {
    let function = env.create_function_from_closure::<(), _, _>(name, move |given| {
        // One too many is a caller of another version, whose arguments stand elsewhere.
        if given.length() != 4 {
            return Err(Error::new(Status::InvalidArg, "the calls for each message have four arguments"));
        }
        let (mut records, mut texts) = (given.get::<BufferSlice<'_>>(2)?, given.get::<BufferSlice<'_>>(3)?);
        call(&mut Out::new(&mut records, &mut texts)?, given.get(0)?, given.get(1)?)
    })?;
    exports.set_named_property(name, function)
}
