"""Walcast's own table: the record of each replicator."""

from __future__ import annotations

import asyncio

from asgiref.sync import sync_to_async
from django.db import close_old_connections, models, transaction

from replication.errors import RecordIsAhead
from replication.lsn import LSN, Position
from replication.record import Epoch, Record


class ReplicationRecord(models.Model):
    """How far a slot is published, in which epoch, and what has left the ring: the one row that survives us."""

    name = models.CharField(max_length=255, primary_key=True)
    epoch = models.CharField(max_length=100)
    published = models.CharField(max_length=60)
    floor = models.CharField(max_length=60)
    xid = models.BigIntegerField(default=0)
    committed_at = models.DateTimeField(null=True)
    acknowledged_lsn = models.CharField(max_length=20, default="0/0")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "walcast_replication_record"

    def __str__(self) -> str:
        return f"{self.name} published={self.published}"


class DjangoRecordStore:
    """Keeps records in the Django database: a `RecordStore`."""

    async def load(self, name: str) -> Record | None:
        """The record, or `None` if there is none, or none that this version can read."""
        record = await sync_to_async(self._load)(name)
        _let_cancellation_through()
        return record

    async def save(self, name: str, record: Record) -> None:
        """Keep the record; it is committed when this returns.

        Raises `RecordIsAhead` if the stored one tells of more: then another replicator is in charge.
        """
        await sync_to_async(self._save)(name, record)
        _let_cancellation_through()

    def _load(self, name: str) -> Record | None:
        close_old_connections()
        return _record(ReplicationRecord.objects.filter(name=name).first())

    def _save(self, name: str, record: Record) -> None:
        close_old_connections()
        with transaction.atomic():
            stored = _record(ReplicationRecord.objects.select_for_update().filter(name=name).first())
            if stored is not None and stored.is_ahead_of(record):
                raise RecordIsAhead(name)
            ReplicationRecord.objects.update_or_create(
                name=name,
                defaults={
                    "epoch": str(record.epoch),
                    "published": str(record.published),
                    "floor": str(record.floor),
                    "xid": record.xid,
                    "committed_at": record.committed_at,
                    "acknowledged_lsn": str(LSN(record.acknowledged_lsn)),
                },
            )


def _record(row: ReplicationRecord | None) -> Record | None:
    if row is None:
        return None
    try:
        epoch, published, floor = Epoch.parse(row.epoch), Position.parse(row.published), Position.parse(row.floor)
        acknowledged_lsn = LSN.parse(row.acknowledged_lsn)
    except ValueError:
        return None
    return Record(epoch, published, floor, row.xid, row.committed_at, acknowledged_lsn)


def _let_cancellation_through() -> None:
    # Cancelled while its thread works, sync_to_async waits for the thread, returns its value, and says nothing of the
    # cancellation: a task that saves again and again would never end.
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
