//! AES-256-XTS (IEEE 1619) in units of 4 KiB: what a fork's blocks are encrypted with where they lie.
//!
//! Not here: authentication, which a disk of fixed blocks has no room for; where the key comes from ([`crate::fork_key`]). What
//! holds: the tweak is the block's number, little-endian, so that a block decrypts at its own place only. Within a unit every 16
//! bytes stand for themselves: of a block that was torn at a multiple of 16 bytes, the parts are old or new, and never noise.
//!
//! Unsafe here and nowhere else in this room, since `aws-lc-rs` has no XTS and `aws-lc-sys` is bindings only. It is three calls
//! on a context that is made once, is freed by its one owner, and is used through `&mut` only; lengths are those of slices.
#![allow(unsafe_code, reason = "the header says why")]

use super::Secret;
use crate::error::{Error, Result};
use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_CipherInit_ex, EVP_CipherUpdate, EVP_aes_256_xts,
};
use std::ptr::{NonNull, null, null_mut};

/// Bytes of a unit.
pub const XTS_UNIT: usize = 4096;

/// Both halves of a key: that of the blocks, that of the tweaks.
pub type XtsKey = Secret<64>;

/// Which way a cipher works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XtsDirection {
    /// Plain to sealed.
    Seal,
    /// Sealed to plain.
    Open,
}

/// A key made ready for one direction. Making it costs a microsecond, using it nothing but the bytes.
pub struct Xts {
    context: NonNull<EVP_CIPHER_CTX>,
    direction: XtsDirection,
}

// SAFETY: a context is plain memory without ties to a thread; whoever owns it may use it.
unsafe impl Send for Xts {}

impl Xts {
    /// Makes `key` ready. `Internal` when its halves are equal, which no random key's are.
    pub fn new(key: &XtsKey, direction: XtsDirection) -> Result<Self> {
        // SAFETY: takes nothing; a null result is looked at.
        let context = NonNull::new(unsafe { EVP_CIPHER_CTX_new() }).ok_or_else(refused)?;
        let mut xts = Xts { context, direction };
        // SAFETY: the context is alive; the cipher is a static of the library; the key has the 64 bytes that it takes; null
        // stands for "none" with engine and tweak.
        let done = unsafe {
            let cipher = EVP_aes_256_xts();
            let key = key.expose().as_ptr();
            EVP_CipherInit_ex(xts.context.as_mut(), cipher, null_mut(), key, null(), direction.flag())
        };
        if done == 1 { Ok(xts) } else { Err(refused()) }
    }

    /// Seals or opens whole units in place; the first is the block with the number `first`. Any other length is `Internal`.
    pub fn apply(&mut self, first: u64, bytes: &mut [u8]) -> Result<()> {
        let (units, rest) = bytes.as_chunks_mut::<XTS_UNIT>();
        if !rest.is_empty() {
            return Err(Error::internal("a block to seal or open that is not whole"));
        }
        for (number, unit) in (first..).zip(units) {
            self.unit(number, unit)?;
        }
        Ok(())
    }

    fn unit(&mut self, number: u64, bytes: &mut [u8]) -> Result<()> {
        let mut tweak = [0; 16];
        let (low, _) = tweak.split_at_mut(8);
        low.copy_from_slice(&number.to_le_bytes());
        let len = i32::try_from(bytes.len()).map_err(|_| refused())?;
        let mut written = 0;
        // SAFETY: the context is alive and ours alone; the tweak has the 16 bytes that the cipher takes, null keeps cipher and
        // key; source and target are the same `len` bytes, which this mode allows, and of which it writes as many.
        let done = unsafe {
            let context = self.context.as_mut();
            EVP_CipherInit_ex(context, null(), null_mut(), null(), tweak.as_ptr(), self.direction.flag()) == 1
                && EVP_CipherUpdate(context, bytes.as_mut_ptr(), &raw mut written, bytes.as_ptr(), len) == 1
        };
        if done && written == len { Ok(()) } else { Err(refused()) }
    }
}

impl XtsDirection {
    fn flag(self) -> i32 {
        match self {
            XtsDirection::Seal => 1,
            XtsDirection::Open => 0,
        }
    }
}

impl Drop for Xts {
    fn drop(&mut self) {
        // SAFETY: made by EVP_CIPHER_CTX_new, freed once. Freeing wipes the key schedule.
        unsafe { EVP_CIPHER_CTX_free(self.context.as_ptr()) }
    }
}

fn refused() -> Error {
    Error::internal("the library refused to work with AES-256-XTS")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The key of vectors 10 to 14 of IEEE 1619.
    fn key() -> XtsKey {
        let halves = "2718281828459045235360287471352662497757247093699959574966967627\
                      3141592653589793238462643383279502884197169399375105820974944592";
        XtsKey::from_slice(&hex(halves)).unwrap()
    }

    fn counting(len: usize) -> Vec<u8> {
        (0..len).map(|i| u8::try_from(i % 256).unwrap()).collect()
    }

    #[test]
    fn vector_10_of_ieee_1619_and_a_unit_sealed_by_another_program() {
        let mut seal = Xts::new(&key(), XtsDirection::Seal).unwrap();
        let mut bytes = counting(512);
        seal.unit(0xff, &mut bytes).unwrap();
        assert_eq!(bytes[..32], hex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"));
        // By Python's cryptography.
        let mut bytes = counting(XTS_UNIT);
        seal.apply(0x0123_4567_89ab_cdef, &mut bytes).unwrap();
        assert_eq!(bytes[..16], hex("5efb5c1c85b22336959d5b7420126588"));
        assert_eq!(bytes[512..528], hex("b34dd2f07b6ee9a63438d8f19089d372"));
        assert_eq!(bytes[XTS_UNIT - 16..], hex("46179e520d2755cdecdebef2930f4d0d"));
    }

    #[test]
    fn what_was_sealed_opens_at_its_own_place_only() {
        let (mut seal, mut open) =
            (Xts::new(&key(), XtsDirection::Seal).unwrap(), Xts::new(&key(), XtsDirection::Open).unwrap());
        let plain = counting(3 * XTS_UNIT);
        let mut bytes = plain.clone();
        seal.apply(7, &mut bytes).unwrap();
        assert_ne!(bytes[..XTS_UNIT], bytes[XTS_UNIT..2 * XTS_UNIT], "equal blocks look different");
        let mut moved = bytes.clone();
        open.apply(8, &mut moved).unwrap();
        assert_ne!(moved, plain);
        open.apply(7, &mut bytes).unwrap();
        assert_eq!(bytes, plain);
    }

    #[test]
    fn a_torn_unit_is_old_and_new_in_its_sectors() {
        let (mut seal, mut open) =
            (Xts::new(&key(), XtsDirection::Seal).unwrap(), Xts::new(&key(), XtsDirection::Open).unwrap());
        let (mut old, mut new) = ([1; XTS_UNIT], [2; XTS_UNIT]);
        seal.apply(5, &mut old).unwrap();
        seal.apply(5, &mut new).unwrap();
        old[1024..1536].copy_from_slice(&new[1024..1536]);
        open.apply(5, &mut old).unwrap();
        for (sector, bytes) in old.chunks(512).enumerate() {
            assert!(bytes.iter().all(|b| *b == if sector == 2 { 2 } else { 1 }), "sector {sector}");
        }
    }

    #[test]
    fn equal_halves_and_broken_units_are_refused() {
        assert!(Xts::new(&XtsKey::new([7; 64]), XtsDirection::Seal).is_err());
        let mut seal = Xts::new(&key(), XtsDirection::Seal).unwrap();
        assert!(seal.apply(0, &mut [0; 4095]).is_err());
        assert!(seal.apply(0, &mut []).is_ok());
    }
}
