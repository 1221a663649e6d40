//! Whether the variables of a document stand where their types may stand (GraphQL, October 2021, 5.8.5), and no
//! object has a member twice (5.6.3).
//!
//! apollo-compiler looks at arguments alone, and not at what stands in lists, in objects and in JSON.

use std::collections::HashSet;

use apollo_compiler::ast::{Argument, DirectiveList, InputValueDefinition, Type, Value};
use apollo_compiler::executable::{Operation, Selection, SelectionSet};
use apollo_compiler::schema::ExtendedType;
use apollo_compiler::validation::Valid;
use apollo_compiler::{ExecutableDocument, Name, Node, Schema};
use async_graphql::{Pos, ServerError};

use super::document::wrong;

/// Checks the variables of an operation. Those of them whose type takes null that stand where null may not: their
/// default is let pass for it. An error names the first that stands where it may not.
pub fn check_positions<'a>(
    schema: &'a Valid<Schema>,
    document: &'a Valid<ExecutableDocument>,
    operation: &'a Operation,
) -> Result<HashSet<Name>, ServerError> {
    let (seen, never_null) = (HashSet::new(), HashSet::new());
    let mut walk = Walk { schema, document, operation, seen, never_null };
    for variable in &operation.variables {
        if let Some(default) = &variable.default_value {
            walk.value(default, Some(&variable.ty), false)?;
        }
    }
    walk.directives(&operation.directives)?;
    walk.selections(&operation.selection_set)?;
    Ok(walk.never_null)
}

/// A walk over all values of an operation and of the fragments that it uses, each once.
struct Walk<'a> {
    schema: &'a Schema,
    document: &'a ExecutableDocument,
    operation: &'a Operation,
    seen: HashSet<&'a Name>,
    never_null: HashSet<Name>,
}

impl<'a> Walk<'a> {
    // The recursion is bounded: a text nests no deeper than `text` lets it, and each fragment is entered once.
    fn selections(&mut self, set: &'a SelectionSet) -> Result<(), ServerError> {
        for selection in &set.selections {
            self.directives(selection.directives())?;
            match selection {
                Selection::Field(field) => {
                    self.arguments(&field.arguments, &field.definition.arguments)?;
                    self.selections(&field.selection_set)?;
                }
                Selection::InlineFragment(inline) => self.selections(&inline.selection_set)?,
                Selection::FragmentSpread(spread) => {
                    let fragment = self.document.fragments.get(&spread.fragment_name);
                    if let Some(fragment) = fragment
                        && self.seen.insert(&spread.fragment_name)
                    {
                        self.directives(&fragment.directives)?;
                        self.selections(&fragment.selection_set)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn directives(&mut self, directives: &DirectiveList) -> Result<(), ServerError> {
        for directive in directives.iter() {
            if let Some(known) = self.schema.directive_definitions.get(&directive.name) {
                self.arguments(&directive.arguments, &known.arguments)?;
            }
        }
        Ok(())
    }

    fn arguments(
        &mut self,
        arguments: &[Node<Argument>],
        known: &[Node<InputValueDefinition>],
    ) -> Result<(), ServerError> {
        for argument in arguments {
            if let Some(known) = known.iter().find(|known| known.name == argument.name) {
                self.value(&argument.value, Some(&known.ty), known.default_value.is_some())?;
            }
        }
        Ok(())
    }

    /// Checks a value that stands where one of a type may stand, or any.
    fn value(
        &mut self,
        value: &Node<Value>,
        of: Option<&Type>,
        has_default: bool,
    ) -> Result<(), ServerError> {
        match &**value {
            Value::Variable(name) => self.variable(value, name, of, has_default),
            Value::List(items) => {
                let item_type = of.map(|of| if of.is_list() { of.item_type() } else { of });
                items.iter().try_for_each(|item| self.value(item, item_type, false))
            }
            Value::Object(members) => {
                let object = of.and_then(|of| self.schema.types.get(of.inner_named_type()));
                let mut known = HashSet::new();
                for (name, member) in members {
                    if !known.insert(name) {
                        return Err(self.wrong(value, format!("an object has {name} twice")));
                    }
                    let field = match object {
                        Some(ExtendedType::InputObject(object)) => object.fields.get(name),
                        _ => None,
                    };
                    let has_default = field.is_some_and(|field| field.default_value.is_some());
                    self.value(member, field.map(|field| &*field.ty), has_default)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn variable(
        &mut self,
        value: &Node<Value>,
        name: &Name,
        of: Option<&Type>,
        has_default: bool,
    ) -> Result<(), ServerError> {
        let Some(declared) = self.operation.variables.iter().find(|known| known.name == *name)
        else {
            return Err(self.wrong(value, format!("variable ${name} is used and not declared")));
        };
        // What JSON has may stand within JSON, whatever it is.
        let Some(of) = of else { return Ok(()) };
        let default = declared.default_value.as_ref();
        let is_never_null =
            declared.ty.is_non_null() || default.is_some_and(|it| !it.is_null()) || has_default;
        let fits = if is_never_null {
            declared.ty.is_assignable_to(&of.clone().nullable())
        } else {
            declared.ty.is_assignable_to(of)
        };
        if fits {
            if of.is_non_null() && !declared.ty.is_non_null() {
                self.never_null.insert(name.clone());
            }
            return Ok(());
        }
        let of_type = &declared.ty;
        let message = format!("variable ${name} of type {of_type} cannot be used where a {of} is");
        Err(self.wrong(value, message))
    }

    /// What is wrong with a value.
    fn wrong(&self, value: &Node<Value>, message: String) -> ServerError {
        let mut error = wrong(message);
        let at = value.line_column_range(&self.document.sources).map(|range| range.start);
        error.locations = at.iter().map(|at| Pos { line: at.line, column: at.column }).collect();
        error
    }
}
