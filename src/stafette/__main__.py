"""`python -m stafette` is the command line."""

from stafette.platform.cli import main

raise SystemExit(main())
