"""The HTTP side; websocket paths are in `streaming.routing`."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import include, path, re_path

from realtime_project import demo
from streaming import operations, rest, routing, views

urlpatterns = [
    path("", views.landing, name="landing"),
    path("inspector", views.inspector, name="inspector"),
    path("", include(demo.urlpatterns)),
    re_path(routing.SOCKET_PATHS, views.socket_without_upgrade),
    path("", include(operations.urlpatterns)),
    path("", include(rest.urlpatterns)),
    path("realtime/v1/", include(operations.urlpatterns)),
    path("realtime/v1/", include(rest.urlpatterns)),
    *([path("admin", views.to_dashboard), path("admin/", admin.site.urls)] if settings.DASHBOARD else []),
    re_path(r"", views.not_found),
]
handler404 = "streaming.views.not_found"
