"""The same as sync views, where one query waits for the other."""

from django.http import HttpRequest, JsonResponse

from benchmarks.site.models import Article
from benchmarks.site.queries import slow, told
from benchmarks.works import GATHERED_KEYS


def hello(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"message": "hello"})


def row(request: HttpRequest, key: int) -> JsonResponse:
    return JsonResponse(told(Article.objects.get(pk=key)))


def gathered(request: HttpRequest) -> JsonResponse:
    found = [slow(key).get() for key in GATHERED_KEYS]
    return JsonResponse({"keys": [key for key, _ in found]})
