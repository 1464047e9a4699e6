from django.db import models


class Note(models.Model):
    title = models.CharField(max_length=100)


class Remark(models.Model):
    note = models.ForeignKey(Note, models.CASCADE, related_name="remarks")
    text = models.CharField(max_length=100)
