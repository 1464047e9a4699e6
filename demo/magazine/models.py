"""The magazine's tables.

Between them they have every kind of relation: forward and reverse foreign keys (article and
author, article and comments), many-to-many (tags) and one-to-one (an author's user account).
"""

import math

from django.conf import settings
from django.db import models
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils import timezone


class Section(models.TextChoices):
    """The departments of the magazine."""

    MUSIC = "music"
    TOWNS = "towns"
    FOOD = "food"
    ENGINEERING = "engineering"
    OUTDOORS = "outdoors"


class Author(models.Model):
    """Somebody who writes; staff writers also have a user account."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="author",
    )
    name = models.CharField(max_length=80)
    slug = models.SlugField(max_length=80, unique=True)
    town = models.CharField(max_length=80)
    bio = models.TextField()

    class Meta:
        ordering = ["name"]

    def __str__(self):
        return self.name

    def get_absolute_url(self):
        return reverse("author", args=[self.slug])


class Tag(models.Model):
    """A subject that articles of any section may share."""

    name = models.CharField(max_length=40, unique=True)
    slug = models.SlugField(max_length=40, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self):
        return self.name

    def get_absolute_url(self):
        return reverse("tag", args=[self.slug])


class ArticleQuerySet(models.QuerySet):
    """Queries that several pages share."""

    def published(self):
        """Leave out what is scheduled for later."""
        return self.filter(published_at__lte=timezone.now())

    def recount_comments(self):
        """Set ``comment_count`` anew from the comments that readers can see."""
        visible = (
            Comment.objects.visible()
            .filter(article=models.OuterRef("pk"))
            .order_by()
            .values("article")
            .annotate(total=models.Count("pk"))
            .values("total")
        )
        count = Coalesce(models.Subquery(visible), 0)
        return self.update(comment_count=count)


class Article(models.Model):
    """One piece; its body is plain text with an empty line between paragraphs."""

    author = models.ForeignKey(Author, on_delete=models.PROTECT, related_name="articles")
    tags = models.ManyToManyField(Tag, related_name="articles", blank=True)
    section = models.CharField(max_length=20, choices=Section.choices)
    title = models.CharField(max_length=120)
    slug = models.SlugField(max_length=120, unique=True)
    standfirst = models.CharField(max_length=250, help_text="One sentence below the title.")
    body = models.TextField(help_text="Plain text; an empty line begins a new paragraph.")
    published_at = models.DateTimeField(default=timezone.now, db_index=True)
    # Kept beside the comments, in the same transaction, so that lists need no join to show it.
    comment_count = models.PositiveIntegerField(default=0, editable=False)

    objects = ArticleQuerySet.as_manager()

    class Meta:
        ordering = ["-published_at", "-pk"]
        indexes = [models.Index(fields=["section", "-published_at"])]

    def __str__(self):
        return self.title

    def get_absolute_url(self):
        return reverse("article", args=[self.slug])

    @property
    def minutes(self):
        """How long an unhurried reader takes, at 200 words a minute."""
        return math.ceil(len(self.body.split()) / 200)

    @property
    def visible_comments(self):
        """The comments that readers can see; a lazy queryset, oldest first."""
        return self.comments.visible()


class CommentQuerySet(models.QuerySet):
    """Queries that several pages share."""

    def visible(self):
        """Leave out what waits for an editor."""
        return self.filter(status=Comment.Status.PUBLISHED)


class Comment(models.Model):
    """A reader's word below an article."""

    class Status(models.TextChoices):
        """Whether readers see the comment."""

        PUBLISHED = "published"
        HELD = "held", "Held for an editor"

    article = models.ForeignKey(Article, on_delete=models.CASCADE, related_name="comments")
    name = models.CharField(max_length=60)
    email = models.EmailField(blank=True)
    body = models.TextField(max_length=2000)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PUBLISHED)

    objects = CommentQuerySet.as_manager()

    class Meta:
        ordering = ["created_at", "pk"]

    def __str__(self):
        return f"{self.name} on {self.article}"

    def get_absolute_url(self):
        return f"{self.article.get_absolute_url()}#comment-{self.pk}"
