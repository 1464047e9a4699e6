"""`python -m tests.bank.prepare`: make the tables and the accounts."""

from __future__ import annotations

import os

import django

from tests.bank.verdict import ACCOUNTS, BALANCE


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bank.settings"
    django.setup()
    from django.core.management import call_command

    from tests.bank.models import Account

    call_command("migrate", run_syncdb=True, verbosity=0)
    Account.objects.bulk_create(
        Account(number=number, balance=BALANCE) for number in range(ACCOUNTS)
    )


if __name__ == "__main__":
    main()
