/** The payload is wrong, and would be wrong again. The message says what came, what is expected, and what to do. */
export class BadInput extends Error {}
