export type BrokerErrorCode =
  /** something listens on that address already, or it is not ours to listen on */
  | 'address'
  /** another broker keeps its journal in that folder */
  | 'locked'
  /** the journal cannot be read or written */
  | 'journal'

/** Why a broker does not start. */
export class BrokerError extends Error {
  readonly code: BrokerErrorCode

  constructor(code: BrokerErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.name = 'BrokerError'
    this.code = code
  }
}
