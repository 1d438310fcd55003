"""The engine: one task per open operation, each a saga that is journalled step by step."""
