"""The pages."""

from django.urls import path

from django_shop.orders import views

urlpatterns = [
    path("orders/", views.create),
    path("orders/<int:pk>/", views.show),
    path("orders/<int:pk>/total/", views.total),
    path("orders/<int:pk>/ship/", views.ship),
    path("orders/<int:pk>/pay/", views.pay),
    path("tasks/<uuid:task_id>/", views.task),
]
