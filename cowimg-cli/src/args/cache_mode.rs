//! Names of cache modes, as `-t` and `-T` take them.

use cowimg::CacheMode;

/// Parses the name of a cache mode, for clap: the names that qemu-img takes, and no others.
pub(crate) fn parse_cache_mode(name: &str) -> Result<CacheMode, String> {
    name.parse().map_err(|why: cowimg::UnknownCacheMode| format!("'{name}': {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_or_the_known_ones_are_listed() {
        assert_eq!(parse_cache_mode("off"), Ok(CacheMode::None));
        assert_eq!(parse_cache_mode("directsync"), Ok(CacheMode::DirectSync));
        let refusal = parse_cache_mode("on").unwrap_err();
        assert!(refusal.contains("'on'") && refusal.contains("writethrough"), "{refusal}");
    }
}
