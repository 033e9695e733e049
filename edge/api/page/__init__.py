"""The page that `GET /` of the local API answers: chat, and where the time of an answer goes."""
