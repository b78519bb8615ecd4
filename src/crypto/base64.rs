//! Standard base64, with vector instructions where the processor has them. Without them it is a large part of the cost
//! of an envelope.

use std::sync::LazyLock;

use base64::engine::general_purpose::PAD;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
type Standard = base64::engine::Simd;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Standard = base64::engine::GeneralPurpose;

/// The engine for this processor. Input and output are the same on all processors.
pub(super) static STANDARD: LazyLock<Standard> = LazyLock::new(|| {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return Standard::standard(PAD);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return Standard::new(&base64::alphabet::STANDARD, PAD);
});
