"""`python -m optin_fx` is `optin-fx`."""

from optin_fx.cli import main

if __name__ == "__main__":
    main()
