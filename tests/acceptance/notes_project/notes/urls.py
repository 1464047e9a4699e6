from django.http import HttpRequest, JsonResponse
from django.urls import path
from notes.models import Note


async def add(request: HttpRequest, title: str) -> JsonResponse:
    note = await Note.objects.acreate(title=title)
    return JsonResponse({"id": note.pk, "notes": await Note.objects.acount()})


def titles(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"titles": [note.title for note in Note.objects.order_by("pk")]})


urlpatterns = [path("add/<title>", add), path("titles", titles)]
