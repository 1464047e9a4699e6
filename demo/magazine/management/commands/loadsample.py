"""``manage.py loadsample``: fills the magazine with invented articles."""

from datetime import timedelta
from random import Random

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone
from django.utils.text import slugify
from tqdm import tqdm

from magazine import sampletext
from magazine.models import Article, Author, Comment, Section, Tag

EDITOR, PASSWORD = "editor", "nuages"
AUTHORS = 40
COMMENTS_PER_ARTICLE = 4
BATCH = 250


class Command(BaseCommand):
    """Load authors, tags, articles and comments; the same seed makes the same texts."""

    help = "Fills the magazine with sample data, and does nothing when it has articles already."

    def add_arguments(self, parser):
        parser.add_argument("--articles", type=int, default=1500, help="how many (default: 1500)")
        parser.add_argument("--seed", type=int, default=1940, help="of the texts (default: 1940)")
        parser.add_argument("--flush", action="store_true", help="delete what is there first")

    def handle(self, *, articles, seed, flush, **options):
        if articles < 1:
            raise CommandError("--articles takes a number from 1 on.")
        # One transaction: a load that is broken off leaves nothing half done behind.
        with transaction.atomic():
            if flush:
                Article.objects.all().delete()  # and their comments
                Author.objects.all().delete()
                Tag.objects.all().delete()
            if Article.objects.exists():
                self.stdout.write("The magazine has articles already; nothing loaded.")
            else:
                self.load(articles, Random(seed))  # noqa: S311 - the same text each time
            editor_is_new = self.ensure_editor()
        if editor_is_new:
            self.stdout.write(f"Log in at /admin/ as {EDITOR}, password {PASSWORD}.")

    def load(self, total, rng):
        now = timezone.now()
        comments_total = total * COMMENTS_PER_ARTICLE
        with tqdm(total=AUTHORS + total + comments_total, desc="Sample data", unit=" rows") as bar:

            def insert(model, rows):
                for start in range(0, len(rows), BATCH):
                    batch = rows[start : start + BATCH]
                    model.objects.bulk_create(batch)
                    bar.update(len(batch) if model in {Author, Article, Comment} else 0)

            authors = make_authors(rng, now)
            insert(Author, authors)
            tags = make_tags()
            insert(Tag, [tag for group in tags.values() for tag in group])
            articles = make_articles(rng, total, authors, now)
            comments = make_comments(rng, comments_total, articles, now)
            insert(Article, articles)
            insert(Article.tags.through, make_taggings(rng, articles, tags))
            insert(Comment, comments)

    def ensure_editor(self):
        """Make the demo's superuser, an author as well; return whether it was missing."""
        users = get_user_model().objects
        editor = users.filter(username=EDITOR).first()
        is_new = editor is None
        if is_new:
            editor = users.create_superuser(EDITOR, "editor@example.org", PASSWORD)
        if not Author.objects.filter(user=editor).exists():
            first = Author.objects.filter(user=None).first()
            if first:
                first.user = editor
                first.save(update_fields=["user"])
        return is_new


def make_authors(rng, now):
    """Invent the writers; every third is on the staff and has a user account."""
    names = set()
    while len(names) < AUTHORS:
        names.add(sampletext.full_name(rng))
    authors = []
    for name in sorted(names):
        town = rng.choice(sampletext.WORDS["town"])
        bio = sampletext.biography(rng, name, town)
        authors.append(Author(name=name, slug=slugify(name), town=town, bio=bio))
    staff = authors[2::3]
    users = get_user_model().objects
    # Accounts survive --flush, hence ignore_conflicts. None as password: nobody can log in.
    users.bulk_create(
        [
            users.model(
                username=author.slug,
                password=make_password(None),
                date_joined=now - timedelta(days=rng.randint(1100, 5000)),
            )
            for author in staff
        ],
        ignore_conflicts=True,
    )
    accounts = users.in_bulk([author.slug for author in staff], field_name="username")
    for author in staff:
        author.user = accounts[author.slug]
    return authors


def make_tags():
    """Return the tags of each section."""
    return {
        section: [Tag(name=name, slug=slugify(name)) for name in names]
        for section, names in sampletext.TAGS.items()
    }


def make_articles(rng, total, authors, now):
    """Invent articles with titles of their own, about three in two days, up to an hour ago."""
    articles, slugs = [], set()
    for number in range(total):
        section = rng.choice(Section.values)
        for _attempt in range(50):
            texts = sampletext.article(rng, section)
            slug = slugify(texts["title"])
            if slug not in slugs:
                break
        else:
            slug = f"{slug}-{number}"
        slugs.add(slug)
        age = timedelta(hours=1 + 16 * number + rng.uniform(0, 15))
        articles.append(
            Article(
                author=rng.choice(authors),
                section=section,
                slug=slug,
                published_at=now - age,
                **texts,
            )
        )
    return articles


def make_taggings(rng, articles, tags):
    """Give each article two or three tags of its section, and at times one of another."""
    tagging = Article.tags.through
    everything = [tag for group in tags.values() for tag in group]
    rows = []
    for article in articles:
        # A square favours the first tags of a section, so that the tag cloud has big and small.
        group = tags[article.section]
        chosen = {group[int(len(group) * rng.random() ** 2)] for _ in range(3)}
        if rng.random() < 0.3:
            chosen.add(rng.choice(everything))
        rows += [tagging(article=article, tag=tag) for tag in sorted(chosen, key=str)]
    return rows


def make_comments(rng, total, articles, now):
    """Invent comments, many on few articles, and count them on these."""
    popularity = [rng.lognormvariate(0, 0.9) for _ in articles]
    comments = []
    for article in rng.choices(articles, popularity, k=total):
        held = rng.random() < 0.02
        comments.append(
            Comment(
                article=article,
                name=sampletext.full_name(rng),
                body=sampletext.comment(rng),
                # Most of what is said is said soon after an article is out.
                created_at=article.published_at + (now - article.published_at) * rng.random() ** 4,
                status=Comment.Status.HELD if held else Comment.Status.PUBLISHED,
            )
        )
        article.comment_count += not held
    return comments
