"""Laws of large random problems: what estimators and algorithms give as sizes go to infinity."""
