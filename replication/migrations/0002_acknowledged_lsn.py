from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("replication", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="replicationrecord",
            name="acknowledged_lsn",
            field=models.CharField(default="0/0", max_length=20),
        ),
    ]
