"""Accounts, and the rows that tell of transfers; nothing is unique, so that twice would show."""

from __future__ import annotations

from django.db import models


class Account(models.Model):
    number = models.IntegerField(primary_key=True)
    balance = models.BigIntegerField()


class Transfer(models.Model):
    """The audit row of a transfer, written in its transaction."""

    key = models.CharField(max_length=40, db_index=True, db_column="reference")
    source = models.IntegerField()
    target = models.IntegerField()
    amount = models.IntegerField()


class Told(models.Model):
    """What a hook writes after the commit."""

    key = models.CharField(max_length=40, db_index=True, db_column="reference")


class Tried(models.Model):
    """What detached code writes, whatever becomes of the transfer."""

    key = models.CharField(max_length=40, db_index=True, db_column="reference")
