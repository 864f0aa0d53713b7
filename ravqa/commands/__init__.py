"""The commands of `ravqa`, in groups; `ravqa.cli` names them all."""
