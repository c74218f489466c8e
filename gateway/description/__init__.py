"""
The API's own description, Swagger 2.0 or OpenAPI 3.0 and 3.1: what it proposes as rules, and where rules no
longer fit it.
"""
