//! tmp
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(super) url: String,
}
impl ConnectOptions {
    pub fn new(url: impl AsRef<str>) -> crate::Result<Self> {
        Ok(Self { url: url.as_ref().into() })
    }
}
