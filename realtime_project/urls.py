"""The HTTP side; websocket paths are in `streaming.routing`."""

from __future__ import annotations

from django.urls import include, path, re_path

from realtime_project import demo
from streaming import routing, views

urlpatterns = [
    path("", views.landing, name="landing"),
    path("", include(demo.urlpatterns)),
    re_path(routing.SOCKET_PATHS, views.socket_without_upgrade),
    re_path(r"", views.not_found),
]
handler404 = "streaming.views.not_found"
