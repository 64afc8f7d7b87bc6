//! Amounts: a whole number of minor units and the currency they are units of.
//!
//! Arithmetic is checked. There is no division and no fraction: whoever needs a share of an amount says which units go
//! where.

use std::fmt;

pub use iso_currency::Currency;

/// A positive amount of money, in minor units of its currency.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    minor: i64,
    currency: Currency,
}

/// Why a number is not an amount that can be transacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the amount is zero")]
    Zero,
    #[error("the amount is larger than {} minor units", Money::MAX_MINOR)]
    TooLarge,
    #[error("{0} is not an ISO 4217 currency number")]
    UnknownCurrency(u32),
}

impl Money {
    /// The largest amount of one transaction: 12 digits, which is what ISO 8583 data element 4 can say.
    pub const MAX_MINOR: i64 = 999_999_999_999;

    /// # Errors
    /// When the amount is zero or does not fit data element 4.
    pub fn new(minor: u64, currency: Currency) -> Result<Self, Error> {
        let minor = i64::try_from(minor).map_err(|_| Error::TooLarge)?;
        match minor {
            0 => Err(Error::Zero),
            minor if minor > Self::MAX_MINOR => Err(Error::TooLarge),
            _ => Ok(Self { minor, currency }),
        }
    }

    /// From what the wire says: minor units and the ISO 4217 number.
    ///
    /// # Errors
    /// As [`Money::new`], or when there is no such currency.
    pub fn from_numeric(minor: u64, number: u32) -> Result<Self, Error> {
        let currency =
            u16::try_from(number).ok().and_then(Currency::from_numeric).ok_or(Error::UnknownCurrency(number))?;
        Self::new(minor, currency)
    }

    #[must_use]
    pub fn minor(self) -> i64 {
        self.minor
    }

    #[must_use]
    pub fn currency(self) -> Currency {
        self.currency
    }
}

impl fmt::Display for Money {
    /// `TZS 50000.00`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::from(self.currency.exponent().unwrap_or(0));
        let scale = 10_i64.pow(u32::try_from(digits).unwrap_or(0));
        write!(f, "{} {}", self.currency.code(), self.minor / scale)?;
        if digits > 0 {
            write!(f, ".{:0digits$}", self.minor % scale)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_fits_data_element_4() {
        assert_eq!(Money::new(0, Currency::TZS), Err(Error::Zero));
        assert_eq!(Money::new(u64::MAX, Currency::TZS), Err(Error::TooLarge));
        assert_eq!(Money::new(1_000_000_000_000, Currency::TZS), Err(Error::TooLarge));
        assert_eq!(Money::new(999_999_999_999, Currency::TZS).map(Money::minor), Ok(999_999_999_999));
        assert_eq!(Money::from_numeric(1, 70_000), Err(Error::UnknownCurrency(70_000)));
        assert_eq!(Money::from_numeric(1, 0), Err(Error::UnknownCurrency(0)));
    }

    #[test]
    fn an_amount_prints_in_its_currency() {
        let shown = |minor, currency| Money::new(minor, currency).map(|m| m.to_string());
        assert_eq!(shown(5_000_005, Currency::TZS).as_deref(), Ok("TZS 50000.05"));
        assert_eq!(shown(5, Currency::UGX).as_deref(), Ok("UGX 5"));
        assert_eq!(shown(1_234, Currency::BHD).as_deref(), Ok("BHD 1.234"));
    }
}
