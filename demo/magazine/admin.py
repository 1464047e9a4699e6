"""The editors' side."""

from django.contrib import admin, messages
from django.db import transaction

from magazine.models import Article, Author, Comment, Tag

admin.site.site_header = "Nuages, editors' desk"
admin.site.site_title = "Nuages"
admin.site.index_title = "The magazine"


@admin.register(Author)
class AuthorAdmin(admin.ModelAdmin):
    """Writers."""

    list_display = ["name", "town", "user"]
    list_select_related = ["user"]
    search_fields = ["name", "town"]
    autocomplete_fields = ["user"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Tag)
class TagAdmin(admin.ModelAdmin):
    """Subjects."""

    list_display = ["name", "slug"]
    search_fields = ["name"]
    prepopulated_fields = {"slug": ["name"]}


@admin.register(Article)
class ArticleAdmin(admin.ModelAdmin):
    """Articles."""

    list_display = ["title", "section", "author", "published_at", "comment_count"]
    list_filter = ["section", "published_at"]
    list_select_related = ["author"]
    list_per_page = 50
    date_hierarchy = "published_at"
    search_fields = ["title", "standfirst", "author__name"]
    autocomplete_fields = ["author", "tags"]
    prepopulated_fields = {"slug": ["title"]}


@admin.register(Comment)
class CommentAdmin(admin.ModelAdmin):
    """Comments; whatever an editor does to them, the articles' counts stay right."""

    list_display = ["name", "article", "status", "created_at"]
    list_filter = ["status", "created_at"]
    list_select_related = ["article"]
    list_per_page = 50
    search_fields = ["name", "body"]
    autocomplete_fields = ["article"]
    actions = ["publish", "hold"]

    def save_model(self, request, obj, form, change):
        super().save_model(request, obj, form, change)
        # Also the article that the comment was moved away from.
        recount([obj.article_id, form.initial.get("article")])

    def delete_model(self, request, obj):
        super().delete_model(request, obj)
        recount([obj.article_id])

    def delete_queryset(self, request, queryset):
        articles = article_ids(queryset)
        super().delete_queryset(request, queryset)
        recount(articles)

    @admin.action(description="Publish the selected comments")
    def publish(self, request, queryset):
        self.set_status(request, queryset, Comment.Status.PUBLISHED)

    @admin.action(description="Hold the selected comments")
    def hold(self, request, queryset):
        self.set_status(request, queryset, Comment.Status.HELD)

    def set_status(self, request, queryset, status):
        # Read before the update: a list filtered by status does not find them afterwards.
        articles = article_ids(queryset)
        with transaction.atomic():
            changed = queryset.update(status=status)
            recount(articles)
        messages.success(request, f"Comments changed: {changed}.")


def article_ids(comments):
    """Return the primary keys of the articles of these comments."""
    return set(comments.order_by().values_list("article_id", flat=True))


def recount(articles):
    """Set the comment counts of these articles anew."""
    Article.objects.filter(pk__in=articles).recount_comments()
